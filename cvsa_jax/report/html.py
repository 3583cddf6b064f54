"""Tables, and self-contained pages of tables, pictures and text."""

import base64
import dataclasses
import html
import io

from PIL import Image

from cvsa_jax.report.pictures import Picture
from cvsa_jax.runtime.files import AnyPath, write_text_atomically

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } figcaption, .note { color: #555; font-size: .9rem; }
figure { margin: 1.5rem 0; } .wide { overflow-x: auto; }
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; `rows[k][0]` names the row."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def as_text(self) -> str:
        """For the terminal: columns padded, the first to the left."""
        cells = [self.header, *self.rows]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.header))]
        lines = [
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_page(page: AnyPath, title: str, blocks: list[str | Picture | Table]) -> AnyPath:
    """An HTML page with everything inside it; text blocks are paragraphs, `# text` a heading. Returns its path."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Picture):
            png, caption = block.path.read_bytes(), html.escape(block.caption)
            width, height = Image.open(io.BytesIO(png)).size  # so that the page does not jump while it loads
            parts.append(
                f'<figure><img alt="{caption}" width="{width}" height="{height}" '
                f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        elif isinstance(block, Table):
            rows = "".join(_row("td", cells) for cells in block.rows)
            parts.append(f'<div class="wide"><table>{_row("th", block.header)}{rows}</table></div>')
        elif block.startswith("# "):
            parts.append(f"<h2>{html.escape(block[2:])}</h2>")
        else:
            parts.append(f'<p class="note">{html.escape(block)}</p>')
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    content = f'<!doctype html><html lang="en">{head}<style>{_STYLE}</style>{"".join(parts)}</html>\n'
    write_text_atomically(page, content)
    return page


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
