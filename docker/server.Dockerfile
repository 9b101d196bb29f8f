# The Normstream server. Build from the repository's root: docker build -f docker/server.Dockerfile .
# docs/docker.md explains the build arguments.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/normstream
ENV PATH=/opt/normstream/bin:$PATH

COPY .ci/constraints.txt /tmp/constraints.txt
# On x86-64 an index may carry torch both with CUDA (several GB) and, marked +cpu, without.
ARG ACCELERATOR=cpu
RUN if [ "$ACCELERATOR" != cuda ] && [ "$(uname -m)" = x86_64 ]; then \
        sed -i 's/^torch==[^+]*$/&+cpu/' /tmp/constraints.txt; \
    fi

# pip reads these from its environment; without them it uses its own index.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md ./
COPY docs/LICENSE ./docs/
COPY adaptation ./adaptation
COPY clients ./clients
COPY service ./service
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /tmp/constraints.txt '.[server]'

FROM python:${PYTHON}
# The embedded Redis keeps its data here when no NORMSTREAM_REDIS_URL is given, and downloaded weights go here too.
RUN useradd --system --uid 10001 --create-home --home-dir /data normstream
COPY --from=build /opt/normstream /opt/normstream
ENV PATH=/opt/normstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NORMSTREAM_DATA=/data/normstream
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# http.client: unlike urllib it goes straight there, whatever proxies the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["normstream"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
