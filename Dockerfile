# The image of Holdfast: two stages, so that what builds is not in what runs. See docs/docker.md.
#
# The base is pinned by tag. A digest pins it for good, and belongs to whoever builds: it changes
# with every security update, and one written here would keep those out. To pin it:
#
#   docker build --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:... -t holdfast:0.1.0 .
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build

# Where packages come from, if not from where pip looks by itself. No credentials: a build shows its
# arguments.
ARG PIP_INDEX_URL

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src

# The dependencies are a layer of their own: they change less often than the sources.
COPY requirements.lock ./
RUN python -m venv /opt/holdfast \
    && /opt/holdfast/bin/python -m pip install --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY proxy ./proxy

# What only builds goes again, pip included.
RUN /opt/holdfast/bin/python -m pip install --no-deps --no-build-isolation . \
    && /opt/holdfast/bin/python -m pip uninstall --yes \
        editables hatchling packaging pathspec pluggy tomlkit trove-classifiers pip

FROM ${PYTHON_IMAGE}

LABEL org.opencontainers.image.title="Holdfast" \
      org.opencontainers.image.description="A caching pull-through proxy and mirror for Cargo registries" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# The account is a number alone, so that an orchestrator can tell that it is not root.
RUN install -d -o 10001 -g 10001 -m 0700 /var/cache/holdfast /var/lib/holdfast \
    && install -d -m 0755 /etc/holdfast \
    && echo '# Mount yours here: https://toml.io, with the keys of docs/configuration.md.' > /etc/holdfast/holdfast.toml

# The same path as where it was built: a virtual environment does not move.
COPY --from=build /opt/holdfast /opt/holdfast

# The places of the image. Variables win over a file, so a mounted configuration need not name them.
# Docker kills 10 s after SIGTERM, so the drain is shorter than that.
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOLDFAST_CONFIG=/etc/holdfast/holdfast.toml \
    HOLDFAST__SERVER__LISTEN='["0.0.0.0:8080", "[::]:8080"]' \
    HOLDFAST__SERVER__DRAIN=8s \
    HOLDFAST__CACHE__DIR=/var/cache/holdfast \
    HOLDFAST__STATE__DIR=/var/lib/holdfast

# What is written at all, so that the rest can be mounted read-only.
VOLUME ["/var/cache/holdfast", "/var/lib/holdfast"]

EXPOSE 8080

STOPSIGNAL SIGTERM

USER 10001:10001

# Python asks, since there is no curl. Orchestrators with probes of their own ignore this.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/holdfast/bin/python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/-/healthz'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["holdfast"]
CMD ["serve"]
