# The Normstream edge client, for x86-64 and arm64. Build from the repository's root:
# docker build -f docker/edge.Dockerfile -t normstream-edge .
# docs/edge.md says how to run it, docs/docker.md what PYTHON, PIP_INDEX_URL and PIP_EXTRA_INDEX_URL are.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/normstream
ENV PATH=/opt/normstream/bin:$PATH

# edge: folders and the standard input; edge,video: video files and cameras too.
ARG EXTRAS=edge
# pip reads these from its environment; without them it uses its own index.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY .ci/constraints.txt /tmp/constraints.txt
COPY pyproject.toml README.md ./
COPY docs/LICENSE ./docs/
# The build names every package of the project; torch is in none of what is installed.
COPY adaptation ./adaptation
COPY clients ./clients
COPY service ./service
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /tmp/constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}
RUN useradd --system --uid 10001 --create-home --home-dir /data normstream
COPY --from=build /opt/normstream /opt/normstream
ENV PATH=/opt/normstream/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
# The edge's key, its model and its last good update: without this volume each container is a new edge.
VOLUME /data
ENTRYPOINT ["normstream-edge"]
CMD ["run", "--help"]
