"""The gallery of all studies, experiments/README.md, from the results in experiments/results/.

    python -m experiments.gallery                                     # write the page
    python -m experiments.gallery --take-from runs/parts/full --study parts --figure filters

With --take-from the results.json of a run is put among the results first, in the place of those of
the same command, and one of its figures, made small.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from experiments.lab import runs, tables

ROOM = Path(__file__).parent
_HEAD = """# What the studies found

Made by `python -m experiments.gallery` from `experiments/results/`. Every study is a package with a
typed command line (`--help`; `--preset smoke` where there is one) and a function
`train_and_evaluate(config, workdir)`, and writes results.json and its figures to its workdir.
"""
_WIDTH = 720  # pixels of a figure


def page(results: Path = ROOM / "results") -> str:
    """Return the gallery's text."""
    found = {path.stem: runs.read_json(path) for path in sorted(results.glob("*.json"))}
    titles = {study: _title(study) for study in found}
    contents = [f"- [{study}](#{study}): {title}" for study, title in titles.items()]
    sections = [_section(study, titles[study], record) for study, record in found.items()]
    return "\n\n".join([_HEAD.rstrip(), "\n".join(contents), *sections]) + "\n"


def _title(study: str) -> str:
    """Return the first line of a study's docstring, which is not run."""
    module = ast.parse((ROOM / study / "__init__.py").read_text())
    return (ast.get_docstring(module) or "").splitlines()[0].rstrip(".")


def _section(study: str, title: str, record: dict[str, Any]) -> str:
    parts = [f"## {study}", title if title[-1] in "?." else f"{title}.", record["shows"]]
    if record["figure"]:
        parts.append(f"![{title}](results/{record['figure']})")
    for run in record["runs"]:
        took = f", {run['took']}" if run["took"] else ""
        about = f"{run['date']}, {run['machine']}; seeds {run['seeds']}{took}."
        parts.append(f"```bash\n{run['command']}\n```\n\n{about}")
        parts += [tables.markdown(table) for table in run["tables"]]
    return "\n\n".join(parts)


def take(workdir: Path, study: str, figure: str, results: Path = ROOM / "results") -> None:
    """Put the results of a run, and a figure of it, among those of its study."""
    found, path = runs.read_json(workdir / "results.json"), results / f"{study}.json"
    config = found["config"]
    preset = "" if config["preset"] == "default" else f" --preset {config['preset']}"
    seeds = ", ".join(map(str, config.get("seeds", [0])))
    run = {
        "command": f"python -m experiments.{study}{preset}",
        "machine": found["machine"],
        "date": found["date"],
        "seeds": f"0 to {config['num_seeds'] - 1}" if "num_seeds" in config else seeds,
        "took": f"{found['seconds']:.0f} s",
        "tables": found["tables"],
    }
    record = runs.read_json(path)
    record["runs"] = [run, *(r for r in record["runs"] if r["command"] != run["command"])]
    if figure:
        (source,) = workdir.rglob(f"{figure}.png")
        image = Image.open(source).convert("RGB")
        image.thumbnail((_WIDTH, _WIDTH))
        image.quantize(64).save(results / f"{study}.png", optimize=True)
        record["figure"] = f"{study}.png"
    runs.write_json(path, record)


def main(take_from: Path | None = None, study: str = "", figure: str = "") -> None:
    """Write the page, after taking in the results of a run if there is one to take."""
    if take_from is not None:
        take(take_from, study, figure)
    (ROOM / "README.md").write_text(page())


if __name__ == "__main__":
    tyro.cli(main)
