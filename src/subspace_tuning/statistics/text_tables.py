"""Tables as Markdown and as LaTeX.

Examples:
    >>> table = Table("Scores", ("row", "cola"), (("ssb", "60.92"), ("(IA)^3", "60.14")), bold=frozenset({(0, 1)}))
    >>> print(table.markdown())
    **Scores**
    <BLANKLINE>
    | row | cola |
    | --- | ---: |
    | ssb | **60.92** |
    | (IA)^3 | 60.14 |
    <BLANKLINE>
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    "‰": r"\textperthousand{}",
    "φ": r"$\varphi$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ it would begin an argument
    "]": "{]}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what stands above it.
        header: the names of the columns.
        lines: the texts, as many in each line as there are columns.
        bold: the lines and columns of what is printed bold.
        wide: the columns of running text. Columns of numbers are aligned to the right, but for the first.
        notes: what stands below it, in sentences.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    wide: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown."""
        rule = ["---:" if self._right(column) else "---" for column in range(len(self.header))]
        lines = [[_markdown(text) for text in self.header], rule]
        for number, line in enumerate(self.lines):
            texts = map(_markdown, line)
            lines.append([f"**{text}**" if (number, at) in self.bold else text for at, text in enumerate(texts)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n{_markdown(note)}\n" for note in self.notes)
        return f"**{_markdown(self.title)}**\n\n{table}\n{notes}"

    def latex(self) -> str:
        """Return the table as LaTeX; it needs the packages booktabs and textcomp."""
        wide = rf"p{{{0.8 / max(len(self.wide), 1):.2g}\linewidth}}"
        columns = "".join(
            wide if at in self.wide else "r" if self._right(at) else "l" for at in range(len(self.header))
        )
        lines = []
        for number, line in enumerate(self.lines):
            texts = map(_latex, line)
            lines.append(
                [rf"\textbf{{{text}}}" if (number, at) in self.bold else text for at, text in enumerate(texts)]
            )
        body = "".join(f"{' & '.join(line)} \\\\\n" for line in lines)
        notes = "".join(f"\\par\\smallskip {_latex(note)}\n" for note in self.notes)
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(self.title)}}}\n\\begin{{tabular}}{{{columns}}}\n"
            f"\\toprule\n{' & '.join(map(_latex, self.header))} \\\\\n\\midrule\n{body}\\bottomrule\n"
            f"\\end{{tabular}}\n{notes}\\end{{table}}\n"
        )

    def _right(self, column: int) -> bool:
        return column > 0 and all(line[column][:1] in {"", *"+-0123456789"} for line in self.lines)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|&~])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
