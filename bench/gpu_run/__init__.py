"""A GPU for ten minutes at a time: what to run on it, so that no step that breaks costs what the others measure.

    bench/run_gpu.sh --part 1 --out OUT           installs without a network, then runs a part
    python -m vilt_fast.bench.gpu_run --part 1 --out OUT
    python -m vilt_fast.bench.gpu_run --part 1 --out OUT --rehearse       tiny sizes on a CPU; the figures mean nothing

plan.py      the parts: which steps, within how many seconds
runner.py    every step a process of its own, which may fail, hang or be killed
archive.py   everything in one file, written anew after every step
facts.py     a measured figure per line, and what was predicted for it
measure.py   the steps that measure; candidates.py those that compare switches of the kernels
choose.py    from what was measured to a table that the kernels read
summary.py   what is printed at the end
"""
