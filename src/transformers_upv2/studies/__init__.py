"""The paper's ablations in small, on the demo world: `upv2 study`.

An arm is what is trained, a study is a table of arms, and every arm is trained once per seed in a process of its own.
"""
