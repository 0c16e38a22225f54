"""A PNG with images, what a model said of them, and where it looked; drawn with Pillow alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, CARD, LINE = (244, 245, 247), (255, 255, 255), (222, 225, 230)
INK, MUTED, BAR, BEST_BAR = (29, 33, 41), (106, 113, 125), (190, 202, 222), (38, 98, 202)
# Dark to bright in perceptually even steps: the anchors of the map from attention to colour.
HEAT = np.array([(13, 8, 50), (84, 15, 109), (158, 40, 100), (221, 81, 58), (251, 147, 27), (252, 240, 130)], float)

# Pixels: around the board, inside a card, an image's box, the text beside it.
MARGIN, GAP, BOX, PANEL = 28, 20, 250, 470
SMALL_BOX = 150  # of an image that has a name beneath it


@dataclass(frozen=True)
class Answered:
    """An image, a question about it, the best answers with their probabilities, and the attention on the patches.

    attention: (height, width) in patches, any nonnegative scale; None if it was not asked for.
    """

    image: Image.Image
    question: str
    answers: list[tuple[str, float]]
    attention: np.ndarray | None


@dataclass(frozen=True)
class Named:
    """An image, the label that a model gives it with its probability, and the attention on the patches.

    attention: (height, width) in patches, any nonnegative scale.
    """

    image: Image.Image
    name: str
    chance: float
    attention: np.ndarray


def draw_board(answered: Sequence[Answered], title: str, model: str, named: Sequence[Named] = ()) -> bytes:
    """The PNG file: a title, one card for each question, one for all images with names, and the legend."""
    cards = [_draw_card(one) for one in answered]
    if named:
        cards.append(_draw_names(named, cards[0].width))
    width = cards[0].width + 2 * MARGIN
    head, foot = 130, 62
    height = head + sum(card.height + GAP for card in cards) + foot
    board = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(board)
    draw.text((MARGIN, 24), _clip(title, 32, width - 2 * MARGIN), INK, font=_font(32))
    draw.text((MARGIN, 64), _clip(model, 17, width - 2 * MARGIN), MUTED, font=_font(17))
    for column, label in enumerate(("image", "where the model looked", "question and answers")):
        draw.text((MARGIN + GAP + column * (BOX + GAP), 104), label, MUTED, font=_font(15))
    y = head
    for card in cards:
        board.paste(card, (MARGIN, y))
        y += card.height + GAP
    _draw_legend(board, MARGIN, y + 4)
    file = io.BytesIO()
    board.save(file, format="PNG", optimize=True)
    return file.getvalue()


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """The image in grey with the attention on its patches as colour.

    Args:
        image: RGB, in the size in which it is shown.
        attention: (height, width); its smallest value is shown as cold and its largest as hot.
    """
    values = attention - attention.min()
    values = (values / max(values.max(), 1e-12)).astype(np.float32)
    smooth = Image.fromarray(values).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)[..., None].astype(np.float64)  # (H, W, 1)
    grey = np.asarray(ImageOps.grayscale(image), np.float64)[..., None]
    # The colder a place, the more of the image shows through.
    opacity = 0.38 + 0.42 * heat
    mixed = (1 - opacity) * grey + opacity * _heat_color(heat[..., 0])
    return Image.fromarray(mixed.round().astype(np.uint8), "RGB")


def _heat_color(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) for values in 0..1."""
    anchors = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, anchors, HEAT[:, channel]) for channel in range(3)], axis=-1)


def _draw_card(one: Answered) -> Image.Image:
    width, height = 2 * BOX + PANEL + 4 * GAP, BOX + 2 * GAP
    card = Image.new("RGB", (width, height), CARD)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, width - 1, height - 1), outline=LINE)
    assert one.attention is not None  # a board is drawn of answers that were asked for with it
    image = ImageOps.contain(one.image, (BOX, BOX), Image.Resampling.LANCZOS)
    for column, shown in enumerate((image, overlay(image, one.attention))):
        x, y = GAP + column * (BOX + GAP), GAP
        card.paste(shown, (x + (BOX - shown.width) // 2, y + (BOX - shown.height) // 2))
    _draw_answers(draw, one, x=2 * BOX + 3 * GAP, y=GAP)
    return card


def _draw_names(named: Sequence[Named], width: int) -> Image.Image:
    """Images side by side, as many as fit; beneath each where the model looked, and what it said."""
    head, line = 40, 24
    card = Image.new("RGB", (width, head + 2 * (SMALL_BOX + GAP) + 2 * line + GAP), CARD)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, card.width - 1, card.height - 1), outline=LINE)
    draw.text((GAP, 12), "ViT: an image in, its label out", MUTED, font=_font(17))
    step = SMALL_BOX + GAP
    left = GAP + (width - GAP) % step // 2
    for one, x in zip(named, range(left, width - step + 1, step), strict=False):
        image = ImageOps.contain(one.image, (SMALL_BOX, SMALL_BOX), Image.Resampling.LANCZOS)
        y = head
        for shown in (image, overlay(image, one.attention)):
            card.paste(shown, (x + (SMALL_BOX - shown.width) // 2, y + (SMALL_BOX - shown.height) // 2))
            y += SMALL_BOX + GAP
        middle = x + SMALL_BOX // 2
        draw.text((middle, y - 8), _clip(one.name, 19, SMALL_BOX), BEST_BAR, font=_font(19), anchor="ma")
        draw.text((middle, y - 8 + line), f"{one.chance:.1%}", MUTED, font=_font(17), anchor="ma")
    return card


def _draw_answers(draw: ImageDraw.ImageDraw, one: Answered, x: int, y: int) -> None:
    """The question, the best answer in large, and a bar for each answer."""
    lines = _wrap(one.question, 22, PANEL, most=2)
    for line in lines:
        draw.text((x, y), line, INK, font=_font(22))
        y += 28
    draw.text((x, y), _clip(one.answers[0][0], 34, PANEL), BEST_BAR, font=_font(34))
    y += 54
    label, number = 150, 62
    shown = one.answers[:5]
    row = min(26, (BOX + GAP - y) // len(shown))
    for index, (answer, chance) in enumerate(shown):
        draw.text((x, y), _clip(answer, 17, label - 10), INK if index == 0 else MUTED, font=_font(17))
        longest = PANEL - label - number
        bar = (x + label, y + 5, x + label + max(1, round(longest * chance)), y + 17)
        draw.rectangle((x + label, y + 5, x + label + longest, y + 17), fill=PAPER)
        draw.rectangle(bar, fill=BEST_BAR if index == 0 else BAR)
        draw.text((x + PANEL, y), f"{chance:.1%}", INK if index == 0 else MUTED, font=_font(17), anchor="ra")
        y += row


def _draw_legend(board: Image.Image, x: int, y: int) -> None:
    draw = ImageDraw.Draw(board)
    bar = _heat_color(np.linspace(0, 1, 180))[None].repeat(14, axis=0)
    board.paste(Image.fromarray(bar.round().astype(np.uint8), "RGB"), (x, y + 4))
    text = "least to most attended patch: how much of it reached the row the answer is read from (attention rollout)"
    draw.text((x + 196, y), _clip(text, 16, board.width - x - 196 - MARGIN), MUTED, font=_font(16))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _clip(text: str, size: int, width: int) -> str:
    """`text`, or as much of it as fits in `width` pixels, with an ellipsis."""
    font, shown = _font(size), text
    while text and font.getlength(shown) > width:
        text = text[:-1]
        shown = text + "..."
    return shown


def _wrap(text: str, size: int, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; the rest is cut off with an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and (len(lines) == most or _font(size).getlength(f"{lines[-1]} {word}") <= width):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_clip(line, size, width) for line in lines]
