# syntax=docker/dockerfile:1
# One process per container; give it GATEWAY_DATABASE_URL, GATEWAY_MASTER_KEY and a store (S3 or a volume).
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /build
RUN python -m venv /opt/gateway
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
COPY migrations ./migrations
RUN /opt/gateway/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE} AS production
LABEL org.opencontainers.image.title="Image Gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --home-dir /var/lib/image-gateway --create-home gateway
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_DATA_DIR=/var/lib/image-gateway \
    GATEWAY_HOST=0.0.0.0
USER 10001
VOLUME /var/lib/image-gateway
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
