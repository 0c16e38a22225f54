"""transformers' own test classes of our families, run against this package; see tests/THEIRS.md, which it writes.

python tests/run_theirs.py                        # compare with the table
python tests/run_theirs.py --update               # rewrite it
python tests/run_theirs.py --source DIR --update  # with a folder of test_modeling_vilt.py and its neighbours
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent))
from theirs import distribution, mount, running, table, testers  # noqa: E402

NOTES = {
    "Modelling": "`ModelTesterMixin`, five classes.",
    "ModellingOfTwoImages": "`ModelTesterMixin`, `ViltForImagesAndTextClassification`.",
    "Configuration": "`ConfigTester`, each of its checks as a test.",
    "ImageProcessing": "`ImageProcessingTestMixin`.",
    "Processing": "`ProcessorTesterMixin`.",
    "ViTModelling": "`ModelTesterMixin`, the three classes of ViT.",
    "ViTConfiguration": "`ConfigTester`, each of its checks as a test, on `ViTConfig`.",
    "VisualBertModelling": "`ModelTesterMixin`, the six classes of VisualBERT.",
    "VisualBertConfiguration": "`ConfigTester`, each of its checks as a test, on `VisualBertConfig`.",
}


def main() -> int:
    options = _parser().parse_args()
    if options.update and options.only:
        sys.exit("--update rewrites whole suites: leave out --only")
    torch.set_num_threads(1)
    source = options.source
    if source is not None and (source / "tests" / "models" / options.family).is_dir():
        source = source / "tests" / "models" / options.family
    old = table.read()
    new, problems = dict(old), []
    control = _run(mount.originals(), source, options) if options.update else {}
    for name, (note, outcomes) in _run(mount.ours(), source, options).items():
        if options.update:
            new[name] = table.updated(old.get(name, table.Suite()), note, outcomes, control[name][1])
        suite = new.get(name, table.Suite())
        found = table.differences(suite, outcomes) if not options.only else []
        problems += [f"{name}.{line}" for line in found]
        failed = [test for test, row in suite.rows.items() if row.verdict == table.FAILED and test in outcomes]
        problems += [f"{name}.{test}: {outcomes[test].line}" for test in failed if outcomes[test].kind != "passed"]
        if options.traces:
            print(running.traces(outcomes))
    if options.update:
        table.write(new)
        print(f"wrote {table.PATH}")
    print("\n".join(problems) or "as the table says, and no failure that a user would meet")
    return bool(problems)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="DIR", help="a folder of per-model test files, or a checkout")
    parser.add_argument("--family", default="vilt", choices=mount.FAMILIES, help="whose files of a checkout are run")
    parser.add_argument("--update", action="store_true", help="rewrite tests/THEIRS.md")
    parser.add_argument("--suite", default="", help="only the suite of this name")
    parser.add_argument("--only", default="", help="only tests with this in their name; not with --update")
    parser.add_argument("--traces", action="store_true", help="print the traceback of every failure")
    return parser


def _run(
    classes: SimpleNamespace, source: Path | None, options: argparse.Namespace
) -> dict[str, tuple[str, dict[str, running.Outcome]]]:
    """Of each suite its note, and the outcomes of its tests on these classes."""
    results = {}
    with mount.mounted(distribution.tests_folder(), classes, source) as importer:
        cases = [(name, NOTES[name], case) for name, case in testers.suites(importer, classes).items()]
        cases += _per_model(importer, source) if source is not None else ()
        for name, note, case in cases:
            if options.suite in ("", name):
                start = time.perf_counter()
                results[name] = note, running.run(case, options.only)
                print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return results


def _per_model(importer: testers.Importer, source: Path) -> Iterator[tuple[str, str, type]]:
    for name, case in testers.per_model(importer, source):
        path = source / f"{case.__module__.rsplit('.', 1)[1]}.py"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield name, f"From `{path.name}`, whose SHA-256 begins with {digest[:12]}; run by hand.", case


if __name__ == "__main__":
    sys.exit(main())
