"""What tests of conversations share: chat templates, and a conversation as ids and labels.

The templates behave as those of Qwen3, R1, Gemma and Mistral do, and are written for these tests.
"""

import json
from pathlib import Path

from distill.data.chat_rendering import Chat
from distill.data.conversations import Conversation
from distill.data.tokenize import tokenize_learned

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is four."},
    {"role": "user", "content": "Sure?\nReally?"},
    {"role": "assistant", "content": "Yes: über-sure, 四."},
]
REPLIES = "It is four.<|im_end|>Yes: über-sure, 四.<|im_end|>"


def tokenize_chats(tokenizer, messages, max_length, first=0):
    """(ids, labels) of each text that a conversation becomes."""
    texts = Chat(tokenizer, Conversation(messages, first)).texts()
    return [tokenize_learned(tokenizer, text, max_length)[:2] for text in texts]


def tokenize_chat(tokenizer, messages, max_length, first=0):
    """(ids, labels) of a conversation that becomes a single text."""
    (example,) = tokenize_chats(tokenizer, messages, max_length, first)
    return example


# Templates ---------------------------------------------------------------------------------------

# As Qwen3: thinking is kept after the last question alone, where it is shown even if empty; tools
# and their calls are shown as JSON.
STRIPPING = """
{%- if tools %}{{ '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}
{%- set at = namespace(asked=0) %}
{%- for m in messages %}
  {%- if m.role == 'user' %}{% set at.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
  {%- set said = m.content %}
  {%- if m.role == 'assistant' %}
    {%- set thought = m.reasoning_content or '' %}
    {%- if '</think>' in said %}
      {%- set thought = said.split('</think>')[0].split('<think>')[-1] %}
      {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.index0 > at.asked and (loop.last or thought) %}
      {%- set said = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said %}
    {%- endif %}
  {%- endif %}
  {{- '<|im_start|>' + m.role + '\\n' + said }}
  {%- for call in m.tool_calls or [] %}
    {{- '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) }}
  {%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As R1: every answer begins with a thought, and finished turns lose it.
FORGETTING = """
{%- for m in messages %}
  {%- if m.role == 'assistant' %}{{ '[A]' + m.content.split('</think>')[-1] + '<|im_end|>' }}
  {%- else %}{{ '[U]' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[A]<think>\\n' }}{% endif %}"""

# As Gemma: no system turn, and the turns alternate.
WITHOUT_SYSTEM = """
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant') }}
  {%- endif %}
  {{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"""

# As Mistral: the system text goes into the last question, wherever that is.
SYSTEM_LAST = """
{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{%- for m in rest %}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate') }}
  {%- endif %}
  {%- if m.role == 'user' %}
    {%- set last = loop.index0 >= rest | length - 2 and messages[0].role == 'system' %}
    {{- '[INST]' + (messages[0].content + '\\n' if last else '') + m.content + '[/INST]' }}
  {%- else %}{{ m.content + '<|im_end|>' }}{% endif %}
{%- endfor %}"""

# As many: only role and content are shown.
PLAIN = """
{%- for m in messages %}
  {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHAT_ROWS = [
    {"messages": [
        {"role": "user", "content": f"what light falls on water {i}"},
        {"role": "assistant", "content": f"the teacher says nobody learns {i}"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "the student learns"},
    ]}
    for i in range(40)
]  # fmt: skip


def chat_data():
    """Write conversations; return the settings of a recipe that learns from them."""
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHAT_ROWS))
    return ("data.train=chat.jsonl", "data.max_length=96")
