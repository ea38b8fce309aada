"""The command line in this process."""

from click.testing import CliRunner

from distill.commands.main import main


def invoke(*arguments):
    """The result of a command; what is no error of a user is raised."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
