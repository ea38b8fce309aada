"""Where signals come from: load a teacher, run it once, write and read the signal cache.

Signals are what a teacher gives at a token: next-token distributions, hidden states, attention. A
codec says how a signal is stored, the cache stores it, runners fill the cache, and the cache tools
work on finished caches. Nothing here knows students or losses.
"""
