"""What an operator asks when something is wrong: what it is, why it matters, and the command that mends it.

Gatherers (`gather/`) look and judge nothing; checks (`checks/`) judge what was gathered and look at nothing. A new
check is a function of `Facts` and one line in `checks/__init__.py`.
"""
