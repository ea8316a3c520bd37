# A server without weights, which come with a volume:
#   docker build -t deepcode-analyst .
#   docker run -p 8000:8000 -v "$PWD/runs/nano/bundle:/bundle:ro" deepcode-analyst
# The same with a bundle inside:
#   docker build -t deepcode-analyst --target with-bundle --build-arg BUNDLE=runs/nano/bundle .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bundle bundle
COPY serve serve
RUN /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve,cache,tracing]'

FROM ${PYTHON_IMAGE} AS runtime
COPY --from=build /opt/venv /opt/venv
# A container is reached from outside of it, so loopback, the default elsewhere, would serve nobody.
# onnxruntime reports its use to its maker unless told not to; nothing here phones anyone.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DEEPCODE_BUNDLE=/bundle \
    DEEPCODE_HOST=0.0.0.0 \
    DEEPCODE_PORT=8000
USER 10001:10001
EXPOSE 8000
# `docker stop` waits 10 seconds; give it DEEPCODE_DRAIN_SECONDS and a little more: `docker stop -t 35`.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; server = http.client.HTTPConnection('127.0.0.1', int(os.environ['DEEPCODE_PORT']), timeout=2); server.request('GET', '/health/live'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["deepcode-serve"]

FROM runtime AS with-bundle
ARG BUNDLE=runs/nano/bundle
COPY ${BUNDLE} /bundle

FROM runtime
