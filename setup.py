"""Package layout only; names, versions and dependencies are in pyproject.toml.

The top-level folders kernels/, reference/ and bench/ install as vilt_fast.kernels, vilt_fast.reference and
vilt_fast.bench: a distribution named `kernels` exists on PyPI and other libraries probe for it, so a top-level module
of that name would break them.
"""

from setuptools import find_packages, setup

MAPPED = ("kernels", "reference", "bench")


def _mapped_packages(folder: str) -> list[str]:
    """Import names of the top-level `folder` and of every package below it."""
    return [f"vilt_fast.{folder}"] + [f"vilt_fast.{folder}.{name}" for name in find_packages(folder)]


setup(
    packages=find_packages(include=["vilt_fast", "vilt_fast.*"]) + [p for f in MAPPED for p in _mapped_packages(f)],
    package_dir={f"vilt_fast.{folder}": folder for folder in MAPPED},
    package_data={
        "vilt_fast": ["py.typed"],
        "vilt_fast.demo": [f"**/*.{kind}" for kind in ("safetensors", "json", "txt", "md", "png", "jpg", "jpeg")],
        "vilt_fast.kernels": ["**/*.json"],
    },
    include_package_data=False,
)
