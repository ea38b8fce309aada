"""A check of `distill doctor` on text that the student writes: whether the teacher can help."""

from __future__ import annotations

from attar.errors import ModelError
from attar.models.generation import stop_ids
from attar.models.sampling import Writer, check_can_write
from attar.models.structure import usable_positions
from distill.data.batching import collate
from distill.doctor.findings import Finding, check, not_applicable
from distill.doctor.fixture import DoctorFixture
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.rollouts.measures import teacher_measures
from distill.rollouts.plan import prompt_of, writable_examples
from distill.rollouts.written import Written, example_of_answer

ANSWERS, LOOKED_AT = 4, 256  # answers written; training examples searched for prompts
MIN_AGREEMENT = 0.5  # of tokens: below it, a teacher has little to say to these answers


@check("own answers")
def own_answers(fixture: DoctorFixture) -> Finding:
    """At the tokens that the student writes, teacher and student often agree on the likeliest id.

    Where they hardly do, the teacher is asked about texts that it would never continue.
    """
    run = fixture.run
    rollouts, student = run.recipe.train.rollouts, fixture.student
    if rollouts is None:
        return not_applicable("the student writes nothing (`train.rollouts`)")
    reads = [LOSSES[term.loss].reads for term in run.recipe.train.objective]
    if "distribution" not in reads:
        return not_applicable("no term compares the student's answers with the teacher")
    try:
        check_can_write(student, run.vocabulary)
    except ModelError as error:
        return Finding("FAIL", str(error))
    train = run.training_examples()
    numbers = range(min(len(train), LOOKED_AT))
    positions, most = usable_positions(run.teacher_config), run.recipe.data.max_length
    writable, _ = writable_examples(train, numbers, rollouts, most, positions)
    asked = [train[int(i)] for i in writable.nonzero()[0][:ANSWERS]]
    found = (prompt_of(example, rollouts) for example in asked)
    prompts = [prompt for prompt in found if prompt is not None]
    if not prompts:
        return not_applicable("no prompt among the first training examples leaves room to answer")
    ends = stop_ids(student, run.tokenizer)
    writer = Writer(student, rollouts.sampling, run.vocabulary, ends, str(run.recipe.seed))
    answers = zip(asked, prompts, writer.write(prompts), strict=True)
    texts = [example_of_answer(Written(prompt, own[0]), asked=one) for one, prompt, own in answers]
    batch = collate([[text] for text in texts]).to(fixture.device)
    signals = fixture.online_sources(batch)["online"]
    chunk = tokens_per_chunk(run.vocabulary, fixture.device)
    measured = teacher_measures(fixture.learner_of_all, batch, signals, run.vocabulary, chunk)
    says = f"both find the same id likeliest at {measured['top1']:.0%} of the tokens it writes"
    if measured["top1"] < MIN_AGREEMENT:
        says += "; train offline first, so that the teacher has something to say there"
        return Finding("warn", says, measured)
    return Finding("pass", says, measured)
