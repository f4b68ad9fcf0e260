"""What a run checks of what its plugins do, so that a broken one cannot silently ruin it.

The errors name the plugin and the hook. Each check is made once, when something begins or ends; none waits for the
device in a step.
"""
