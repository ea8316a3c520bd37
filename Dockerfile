# Without weights, which come with a volume:
#   docker build -t deepcode-analyst .
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/models/nano:/bundle:ro" deepcode-analyst
# Other targets: with-bundle (a bundle inside), serve-cuda, vllm, compress, and sbom, which is a list of what is in it:
#   docker build --target with-bundle --build-arg BUNDLE=models/nano .
#   docker build --target sbom --output type=local,dest=. .
# Behind a proxy or a mirror, the build takes the host's own certificates and pip settings, and keeps neither:
#   docker build --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt --secret id=pip,src=/etc/pip.conf .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.27.1


# --- Building: pip stays here, in an environment of its own.
FROM ${PYTHON_IMAGE} AS pip
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_PYTHON=/opt/venv/bin/python3
WORKDIR /src
# What everything needs changes seldom: code that changed is installed upon layers that did not.
COPY pyproject.toml constraints.txt README.md LICENSE ./

# What no server imports goes again: a hub's client, which tokenizers could download with, a maker of example data,
# which litestar could test with, and packages' own tests.
FROM pip AS serve-build
# Code search wants `search` too, which is large, or `search-postgres` for an index in a database.
ARG EXTRAS=serve,cache,tracing
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && /opt/pip/bin/pip uninstall --yes deepcode-analyst huggingface-hub hf-xet polyfactory faker \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} +
COPY bundle bundle
COPY serve serve
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip install --no-deps .

FROM serve-build AS serve-cuda-build
# Both packages of ONNX Runtime are one folder: the one without CUDA goes before the other comes. With it comes again
# what nobody imports.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip uninstall --yes onnxruntime \
    && /opt/pip/bin/pip install --constraint constraints.txt '.[gpu]' \
    && /opt/pip/bin/pip uninstall --yes huggingface-hub hf-xet polyfactory faker

FROM pip AS compress-build
# A second place to look for torch: with https://download.pytorch.org/whl/cpu it is the one without CUDA.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip install --constraint constraints.txt '.[compress,serve]' \
    && /opt/pip/bin/pip uninstall --yes deepcode-analyst
COPY bundle bundle
COPY compress compress
COPY serve serve
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip install --no-deps .

FROM serve-build AS sbom-build
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_PYTHON=/opt/pip/bin/python3 /opt/pip/bin/pip install cyclonedx-bom==7.5.0 \
    && /opt/pip/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /opt/venv/bin/python3

# --- The Python packages of `serve` as CycloneDX. The base's own packages are in the attestation that
# `docker buildx build --sbom=true` adds.
FROM scratch AS sbom
COPY --from=sbom-build /sbom.cdx.json /


# --- Running
FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="DeepCode-Analyst" \
      org.opencontainers.image.description="Serves a distilled code-analysis model over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The user has no home and the root is read-only: what wants to write, writes to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
USER 10001:10001

FROM runtime AS compress
COPY --from=compress-build /opt/venv /opt/venv
WORKDIR /runs
ENTRYPOINT ["deepcode-compress"]

FROM runtime AS server
COPY scripts/healthcheck.py /opt/healthcheck.py
# A container is reached from outside of it, so loopback, the default elsewhere, would serve nobody.
# onnxruntime reports its use to its maker unless told not to; nothing here phones anyone.
ENV ORT_DISABLE_TELEMETRY=1 \
    DEEPCODE_BUNDLE=/bundle \
    DEEPCODE_HOST=0.0.0.0 \
    DEEPCODE_PORT=8000
EXPOSE 8000
# `docker stop` waits 10 seconds; give it DEEPCODE_DRAIN_SECONDS and a little more: `docker stop -t 35`.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python3", "/opt/healthcheck.py"]
ENTRYPOINT ["deepcode-serve"]

# CUDA itself comes with the Python packages; the host has the driver and NVIDIA's container toolkit.
FROM server AS serve-cuda
COPY --from=serve-cuda-build /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DEEPCODE_DEVICE=cuda

# vLLM's own image, and our server beside it in an environment that sees vLLM's packages and changes none of them.
FROM ${VLLM_IMAGE} AS vllm
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="DeepCode-Analyst with vLLM" \
      org.opencontainers.image.description="Serves a distilled code-analysis model over HTTP, with vLLM as its engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bundle bundle
COPY serve serve
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/python3 -m pip install '.[serve,cache,tracing]'
COPY scripts/healthcheck.py /opt/healthcheck.py
WORKDIR /tmp
# vLLM asks who the user is, who has no entry in /etc/passwd.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=deepcode \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DEEPCODE_ENGINE=vllm \
    DEEPCODE_SLOTS=256 \
    DEEPCODE_BUNDLE=/bundle \
    DEEPCODE_HOST=0.0.0.0 \
    DEEPCODE_PORT=8000
USER 10001:10001
EXPOSE 8000
# Loading, compiling and capturing graphs takes minutes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20m --retries=3 CMD ["python3", "/opt/healthcheck.py"]
ENTRYPOINT ["deepcode-serve"]

FROM server AS serve-packages
COPY --from=serve-build /opt/venv /opt/venv

FROM serve-packages AS with-bundle
ARG BUNDLE=models/nano
COPY ${BUNDLE} /bundle

# --- The default
FROM serve-packages AS serve
