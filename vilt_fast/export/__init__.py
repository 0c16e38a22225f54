"""Models that leave the building: `torch.export` programs, ONNX files and AOTInductor packages, which run without us.

    >>> from vilt_fast import demo, export
    >>> model, processor = demo.load()
    >>> program = export.to_program(model)  # an ExportedProgram; sizes of batch, words and images are dynamic
    >>> report = export.save(model, "vqa.onnx", format="onnx", processor=processor)

An exported model runs padded, with masks: padding costs time, and no size in its graph depends on values. It checks no
value: ids beyond the tables, or a pixel mask that is no rectangle, give an error of the runtime or a wrong answer.
"""

from .axes import Axis
from .program import to_program
from .saving import FORMATS, Report, save

__all__ = ["FORMATS", "Axis", "Report", "save", "to_program"]
