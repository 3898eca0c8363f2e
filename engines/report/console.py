"""The report's overview as a table on the console: a row per figure, a column per preset."""

from __future__ import annotations

from typing import Any

from engines.report import tables


def show(results: dict[str, Any], console: Any = None) -> None:
    """Print the overview, the headline and the notes; `console` is a rich Console (None: stdout)."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    rows = tables.overview(results)
    table = Table(
        title=results["name"] + (f", {len(results['prompts'])} prompts" if results["prompts"] else ""),
        title_justify="left",
    )
    table.add_column("")
    for name, _ in rows:
        table.add_column(name, justify="right")
    for k, column in enumerate(tables.COLUMNS):
        cells = [cells[k] for _, cells in rows]
        if any(c.text != tables.MISSING for c in cells):
            heading = f"{column.title}\n[dim]{column.unit}[/dim]" if column.unit else column.title
            table.add_row(heading, *(f"{c.text}\n[dim]{c.note}[/dim]" if c.note else c.text for c in cells))
    console.print(table)
    console.print(tables.headline(results), highlight=False)
    for note in tables.notes(results):
        console.print(f"[yellow]note[/yellow] {note}", highlight=False)
