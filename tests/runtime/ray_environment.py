"""What a Ray cluster of a test finds in its environment."""

import secrets
from pathlib import Path


def ray_environment(folder: Path) -> dict[str, str]:
    """Its files in that folder, whose name must be short; on the loopback interface, with a token, telling nobody."""
    return {
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
