"""The command, in the process of the test."""

from capsnet import cli


def typed(capture, *arguments):
    """Exit status, standard output and standard error of what was typed. ``capture`` is pytest's capsys or capfd."""
    status = cli.main([str(argument) for argument in arguments])
    said = capture.readouterr()
    return status, said.out, said.err
