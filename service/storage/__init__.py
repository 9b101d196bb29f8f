"""The home of the streams: Redis, ours or one that the operator runs. States are opaque bytes here."""
