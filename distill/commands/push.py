"""stub for now"""
import click


@click.command("push")
def push() -> None:
    """x"""
