"""What a run checks of what its plugins do, so that a broken one cannot silently ruin it.

The errors are `RunError`, and their place is ``plugin NAME, hook HOOK``. Each check is made once, at the beginning or the
end of something; none waits for the device in a step.
"""
