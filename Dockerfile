# syntax=docker/dockerfile:1
# Two images: `production` (default) needs GATEWAY_DATABASE_URL, GATEWAY_MASTER_KEY and a store;
# `standalone` carries a Postgres and serves by itself. One process per container (docs/deploy.md).
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /build
RUN python -m venv /opt/gateway
COPY requirements-production.lock ./
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements-production.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
COPY migrations ./migrations
RUN /opt/gateway/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/gateway/bin/pip uninstall --yes hatchling editables

# The same with the embedded Postgres: its lock has the same versions.
FROM build AS build-standalone
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
 && /opt/gateway/bin/pip uninstall --yes hatchling editables

FROM ${BASE} AS base
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Image Gateway" \
      org.opencontainers.image.description="One place to make and edit images with AI, and to know who spent what." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/image-gateway --create-home gateway \
 && chmod 0700 /var/lib/image-gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_DATA_DIR=/var/lib/image-gateway \
    GATEWAY_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/image-gateway
VOLUME /var/lib/image-gateway
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:%s/health' % os.environ.get('GATEWAY_PORT', '8000'), timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]

FROM base AS standalone
COPY --from=build-standalone /opt/gateway /opt/gateway

FROM base AS production
COPY --from=build /opt/gateway /opt/gateway
