"""`distill features`: fit a classical classifier on frozen features, and classify texts with it.

Heavy modules are imported inside the function, so that help and errors appear at once.
"""

from __future__ import annotations

import click

from distill.commands.options import recipe_options
from distill.commands.run import open_run
from distill.commands.say import say


@click.command("features")
@recipe_options
@click.option("--text", "texts", multiple=True, help="Print this text's class as well; repeatable.")
def features(
    recipe: str,
    run_dir: str | None,
    overrides: tuple[str, ...],
    texts: tuple[str, ...],
    **show: bool,
) -> None:
    """Fit a classical classifier on frozen features (section `features`).

    The features are kept, so that another classifier on them takes seconds.
    """
    run = open_run(recipe, run_dir, overrides, "features", **show)
    from distill.console import print_table
    from distill.features import fit_classifier, load_feature_classifier, metric_rows

    found = fit_classifier(run, texts)
    print_table(metric_rows(found))
    folder = run.folder.features
    if texts:
        classifier = load_feature_classifier(folder)
        for text, row in zip(texts, classifier.probabilities(list(texts)), strict=True):
            best = int(row.argmax())
            say(f"{classifier.classes[best]} ({row[best]:.3f}): {text}")
    say(f"Classifier: {folder / 'classifier.skops'}")
