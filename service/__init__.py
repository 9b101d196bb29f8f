"""The service: adaptation over HTTP, with every stream's state in Redis."""
