FROM python:3.11-slim-bookworm AS builder
WORKDIR /app
ARG LOCK=requirements.lock
COPY ${LOCK} requirements.lock
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install \
        --no-cache-dir --no-compile --require-hashes --requirement requirements.lock
COPY service service
# Bytecode that is never compared with its source: the image starts fast and writes nothing.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /venv/lib service

FROM python:3.11-slim-bookworm
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="ptheta" \
    org.opencontainers.image.description="Generative image models over HTTP" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}"
WORKDIR /app
COPY --from=builder /venv /venv
COPY LICENSE ./
COPY model_store model_store
COPY --from=builder /app/service service
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PTHETA_HOST=0.0.0.0 \
    PTHETA_PORT=8000 \
    PTHETA_MODEL_STORE=/app/model_store
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Readiness, not liveness: Docker restarts nothing on it, but `depends_on` and proxies wait for it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client, os, sys; server = http.client.HTTPConnection('127.0.0.1', int(os.environ['PTHETA_PORT']), timeout=4); server.request('GET', '/readyz'); sys.exit(server.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
