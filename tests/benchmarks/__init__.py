"""How fast every stage is beside what the machine, or the bare library, could do: one file a question.

`python -m tests.benchmarks` (`make bench`) measures and prints one table; `harness.py` says how.
"""
