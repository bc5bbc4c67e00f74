"""The HTML of the controls in `brainlib.interact`: it needs no other file, and without scripts a picture remains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

PICTURE = '<img src="{uri}" alt="{alt}" style="background:#fff;height:auto;max-width:100%{width}">'
SLIDER = """\
<label class="brainlib-axis" style="display:contents"><span>{label}</span>
<input type="range" min="0" max="{last}" step="1" value="{start}" autocomplete="off" aria-label="{label}" \
aria-valuetext="{text}">
<output aria-live="off" style="min-width:{room}ch">{text}</output></label>"""
# The sliders are hidden until the script runs: without it they would do nothing.
SCRUB = """\
<figure class="brainlib-scrub" id="{id}">
{picture}
<div class="brainlib-axes" hidden style="align-items:center;gap:0.4rem 0.8rem;\
grid-template-columns:fit-content(45%) minmax(6rem,24rem) max-content">
{sliders}
</div>
{caption}
<script>
((figure, texts, frames) => {{
  const image = figure.querySelector("img"), axes = figure.querySelector(".brainlib-axes");
  const inputs = [...axes.querySelectorAll("input")];
  frames[frames.indexOf(0)] = image.src;
  const show = () => {{
    let at = 0;
    inputs.forEach((input, axis) => {{
      const text = texts[axis][input.value];
      at = at * texts[axis].length + Number(input.value);
      input.setAttribute("aria-valuetext", text);
      input.nextElementSibling.textContent = text;
    }});
    image.src = frames[at];
  }};
  axes.addEventListener("input", show);
  axes.hidden = false;
  axes.style.display = "grid";
  show();
}})(document.currentScript.closest("figure"), {texts}, {frames});
</script>
</figure>"""
ANIMATION = """\
<figure class="brainlib-animation" id="{id}">
<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">
{picture}</picture>
<div><button type="button" hidden>Stop</button></div>
{caption}
<script>
((figure) => {{
  const image = figure.querySelector("img"), button = figure.querySelector("button");
  const source = figure.querySelector("source"), moving = image.src, still = source.srcset;
  const show = (play) => {{
    image.src = play ? moving : still;
    button.textContent = play ? "Stop" : "Play";
  }};
  button.addEventListener("click", () => show(button.textContent === "Play"));
  button.hidden = false;
  show(!matchMedia(source.media).matches);
  source.remove();
}})(document.currentScript.closest("figure"));
</script>
</figure>"""


def picture(uri: str, alt: str, width: int | None) -> str:
    """An image element; ``width`` in pixels of the page, that of the picture without it."""
    return PICTURE.format(uri=uri, alt=escape(alt), width=f";width:{width}px" if width else "")


def scrub(
    frames: Sequence[str], texts: Mapping[str, Sequence[str]], start: Sequence[int], alt: str, caption: str, **look: Any
) -> str:
    """A picture with a slider for each axis.

    Args:
        frames: data URIs of all combinations, the last axis changing fastest.
        texts: the label of each axis, and its values as they are shown.
        start: the position of each axis at first.
        look: ``width`` of the picture and ``name``, the id of the figure (each may be None).
    """
    first = 0
    for position, values in zip(start, texts.values(), strict=True):
        first = first * len(values) + position
    sliders = [
        SLIDER.format(
            label=escape(label),
            last=len(values) - 1,
            start=position,
            text=escape(values[position]),
            room=max(map(len, values)),
        )
        for (label, values), position in zip(texts.items(), start, strict=True)
    ]
    return _fill(
        SCRUB,
        look["name"],
        picture=picture(frames[first], alt, look["width"]),
        sliders="\n".join(sliders),
        caption=_caption(caption),
        texts=_script(list(texts.values())),
        # The first picture stands in the image element, once.
        frames=_script([0 if i == first else frame for i, frame in enumerate(frames)]),
    )


def animation(moving: str, still: str, alt: str, caption: str, **look: Any) -> str:
    """An animated picture with a button that stops it; ``moving`` and ``still`` are data URIs."""
    shown = picture(moving, alt, look["width"])
    return _fill(ANIMATION, look["name"], picture=shown, still=still, caption=_caption(caption))


def _fill(template: str, name: str | None, **parts: str) -> str:
    """The template with its parts; an id made from them, so that it is the same when the cell runs again."""
    made = "brainlib-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
    return template.format(id=escape(name or made), **parts)


def _caption(caption: str) -> str:
    return f"<figcaption>{escape(caption)}</figcaption>" if caption else ""


def _script(value: Any) -> str:
    """``value`` as JSON that may stand in a script of a page."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
