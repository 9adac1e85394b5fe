"""SASS, the machine code of NVIDIA's GPUs: read it, and follow one thread through its branches.

- ``instructions``: the text of ``cuobjdump -sass`` as instructions, with the registers of each.
- ``arithmetic``: the integer instructions on which branches depend.
- ``path``: the instructions that a thread executes, loops included, and how often.
- ``schedule``: how long a program takes, and the loads that it waits for.
"""
