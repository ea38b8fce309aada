"""`distill cache ...` on existing caches: check, describe, and derive other caches from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.commands.group import Group
from distill.commands.options import codec_option, json_option, message_options, trust_option
from distill.commands.say import say

if TYPE_CHECKING:
    from teachers.cache_tools.rewrite import CacheDraft


@click.group(cls=Group)
def cache() -> None:
    """The teacher's signals on disk."""


@cache.command()
@click.argument("url", metavar="CACHE")
@click.option("--tokenizer", metavar="ID", help="Compare the tokenizer of this model as well.")
@click.option("--teacher", is_flag=True, help="Ask the teacher again for a few examples.")
@click.option("--teacher-model", metavar="PATH", help="Where that teacher is now.")
@click.option("--server", metavar="URL", help="Where a teacher on a server is asked.")
@click.option("--key-env", metavar="NAME", help="The variable that holds that server's key.")
@trust_option()
@message_options
def verify(
    url: str,
    tokenizer: str | None,
    teacher: bool,
    teacher_model: str | None,
    server: str | None,
    key_env: str | None,
    trust_remote_code: bool,
    **show: bool,
) -> None:
    """Check files, counts and, if asked, tokenizer and teacher. Exit 1 where a check fails."""
    from attar.errors import RecipeError
    from attar.progress import progress
    from distill.console import set_up_logging
    from teachers.cache.store import SignalStore
    from teachers.cache_tools.verify import teacher_of
    from teachers.cache_tools.verify import verify as check

    set_up_logging(**show)
    config, loaded = None, None
    if key_env is not None and server is None:
        raise RecipeError("--key-env has no effect without --server; give both, or leave it out.")
    if teacher or teacher_model or server:
        config = teacher_of(
            url, teacher_model, trust_remote_code=trust_remote_code, server=server, key_env=key_env
        )
    if tokenizer is not None:
        from attar.models.tokenizers import load_tokenizer

        loaded = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    with progress("verify", manifest_tokens(url), "tokens") as work:
        faults = check(url, tokenizer=loaded, teacher=config, on_tokens=work.advance)
    for fault in faults:
        say(fault)
    if faults:
        sys.exit(1)
    numbers = SignalStore(url).totals()
    say(f"All is well: {numbers['examples']:,} examples, {numbers['tokens']:,} tokens.")


@cache.command()
@click.argument("url", metavar="CACHE")
@json_option("the statistics")
@message_options
def stats(url: str, file: str | None, **show: bool) -> None:
    """Show examples, tokens, bytes a token by part; histograms of entropy, kept mass, entries.

    Of labels: the teacher's perplexity on the text, and a histogram of its tokens.
    """
    from attar.device import default_device
    from attar.files import write_json
    from attar.progress import progress
    from distill.commands.cache_statistics import print_statistics
    from distill.console import set_up_logging
    from teachers.cache_tools.statistics import statistics

    set_up_logging(**show)
    with progress("stats", manifest_tokens(url), "tokens") as work:
        found = statistics(url, device=default_device(), on_tokens=work.advance)
    if file:
        write_json(Path(file), found.values())
    print_statistics(found)


@cache.command("slice")
@click.argument("url", metavar="CACHE")
@click.argument("out")
@click.option(
    "--examples", type=click.IntRange(min=1), help="Keep this many, the first by their keys."
)
@click.option(
    "--keys",
    type=click.File(),
    metavar="FILE",
    help="Keep the examples with these keys, one a line.",
)
@click.option("--layers", metavar="NUMBERS", help="Keep these layers, as in `4,8`; or `none`.")
@click.option("--attention", metavar="NUMBERS", help="Keep these blocks' attention; or `none`.")
@message_options
def slice_(
    url: str,
    out: str,
    examples: int | None,
    keys: Any,
    layers: str | None,
    attention: str | None,
    **show: bool,
) -> None:
    """Make a smaller cache: fewer examples, fewer layers' hidden states or blocks' attention."""
    from attar.errors import RecipeError
    from teachers.cache_tools.rewrite import sliced

    if examples is None and keys is None and layers is None and attention is None:
        raise RecipeError("Say what to keep: --examples, --keys, --layers or --attention.")
    chosen = None if keys is None else [line.strip() for line in keys if line.strip()]
    kept = {"layers": _numbers(layers), "attention": _numbers(attention)}
    write_draft(lambda: sliced(url, examples=examples, keys=chosen, **kept), out, show)


@cache.command()
@click.argument("urls", metavar="CACHE...", nargs=-1, required=True)
@click.argument("out")
@message_options
def merge(urls: tuple[str, ...], out: str, **show: bool) -> None:
    """Merge caches that agree in all but their data into one."""
    from teachers.cache_tools.rewrite import merged

    write_draft(lambda: merged(urls), out, show)


@cache.command()
@click.argument("url", metavar="CACHE")
@click.argument("out")
@codec_option()
@click.option("--hidden", metavar="CODEC", help="A codec for the hidden states of layers.")
@click.option("--labels", is_flag=True, help="Add the log-probability of the text's own tokens.")
@click.option("--data", metavar="RECIPE", help="The recipe or run of the text, for labels.")
@message_options
def convert(
    url: str,
    out: str,
    codec: str | None,
    hidden: str | None,
    labels: bool,
    data: str | None,
    **show: bool,
) -> None:
    """Store the same signals in another codec, where it can be computed. No teacher is run."""
    from attar.errors import RecipeError

    if codec is None and hidden is None and not labels:
        raise RecipeError("Say what to convert to: --codec, --hidden or --labels.")

    def draft() -> CacheDraft:
        from attar.device import default_device
        from distill.commands.codec_argument import codec_of, layer_codec_of
        from distill.commands.run import open_run
        from distill.stages.small_cache import labels_of_examples
        from teachers.cache_tools.convert import converted
        from teachers.codecs.codec import is_label_codec

        wanted = codec_of(codec, "--codec") if codec else None
        reads_text = labels or (wanted is not None and is_label_codec(wanted))
        if data is not None and not reads_text:
            raise RecipeError(
                "`--data` has no effect: only `--codec label` and `--labels` read the text."
            )
        return converted(
            url,
            codec=wanted,
            layer_codec=layer_codec_of(hidden, "--hidden") if hidden else None,
            device=default_device(),
            labels=labels_of_examples(open_run(data, None, (), **show)) if data else None,
            add_labels=labels,
        )

    write_draft(draft, out, show)


@cache.command()
@click.argument("urls", metavar="CACHE...", nargs=-1, required=True)
@click.argument("out")
@codec_option(required=True)
@click.option(
    "--weights", metavar="NUMBERS", help="One for each cache, as in `2,1`; default: equal."
)
@click.option("--common", is_flag=True, help="Keep only the examples that all caches hold.")
@message_options
def ensemble(
    urls: tuple[str, ...], out: str, codec: str, weights: str | None, common: bool, **show: bool
) -> None:
    """Mix the signals of several teachers of one vocabulary on the same examples, by weights."""

    def draft() -> CacheDraft:
        from attar.device import default_device
        from distill.commands.codec_argument import codec_of
        from teachers.cache_tools.ensemble import mixed

        members = list(zip(urls, _weights(weights, len(urls)), strict=True))
        wanted = codec_of(codec, "--codec")
        return mixed(members, wanted, common=common, device=default_device())

    write_draft(draft, out, show)


# Shared by the commands ------------------------------------------------------------------------


def write_draft(make: Any, out: str, show: dict[str, bool]) -> None:
    """Write a derived cache with a progress bar, and print its size."""
    from attar.progress import progress
    from distill.console import set_up_logging
    from teachers.cache_tools.rewrite import write_cache

    set_up_logging(**show)
    draft: CacheDraft = make()
    with progress("write", draft.tokens, "tokens") as work:
        numbers = write_cache(draft, out, on_tokens=work.advance, on_skip=work.skip)
    size = numbers["bytes"] / max(1, numbers["tokens"])
    say(
        f"{out}: {numbers['examples']:,} examples, {numbers['tokens']:,} tokens, "
        f"{size:.1f} bytes a token."
    )


def manifest_tokens(url: str) -> int:
    """Counted tokens that a cache will have when whole; 0 where its manifest does not say."""
    from attar.errors import CacheError
    from teachers.cache.store import SignalStore

    try:
        manifest = SignalStore(url).manifest()
    except CacheError:
        return 0
    return int((manifest or {}).get("data", {}).get("tokens", 0))


def _numbers(text: str | None) -> list[int] | None:
    from attar.errors import RecipeError

    if text is None or text == "none":
        return None if text is None else []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"`--layers {text}` must be numbers, as in `4,8`, or `none`.") from None


def _weights(text: str | None, count: int) -> list[float]:
    from attar.errors import RecipeError

    if text is None:
        return [1.0] * count
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"`--weights {text}` must be numbers, as in `2,1`.") from None
    if len(found) != count:
        raise RecipeError(f"`--weights {text}` are {len(found)} numbers for {count} caches.")
    return found
