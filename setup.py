"""Package layout only; names, versions and dependencies are in pyproject.toml.

The top-level folders kernels/, reference/ and bench/ install as vilt_fast.kernels, vilt_fast.reference and
vilt_fast.bench: a distribution named `kernels` exists on PyPI and other libraries probe for it, so a top-level module
of that name would break them.
"""

from setuptools import find_packages, setup

MAPPED = ("kernels", "reference", "bench")
mapped_packages = find_packages(include=[*MAPPED, *(f"{folder}.*" for folder in MAPPED)])

setup(
    packages=find_packages(include=["vilt_fast", "vilt_fast.*"]) + [f"vilt_fast.{name}" for name in mapped_packages],
    package_dir={f"vilt_fast.{folder}": folder for folder in MAPPED},
    package_data={
        "vilt_fast": ["py.typed"],
        "vilt_fast.demo": [f"**/*.{kind}" for kind in ("safetensors", "json", "txt", "md", "png", "jpg", "jpeg")],
        "vilt_fast.kernels": ["**/*.json"],
        "vilt_fast.bench.gpu_run": ["*.json"],
    },
    include_package_data=False,
)
