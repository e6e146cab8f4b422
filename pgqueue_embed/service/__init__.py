"""A worker that the system starts by itself and keeps alive: launchd on macOS, systemd on Linux."""
