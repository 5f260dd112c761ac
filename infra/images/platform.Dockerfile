# Training, inference and Ray on any node; simulators' images are built on it.
#   docker build -f infra/images/platform.Dockerfile -t vla-platform:0.1.0 .
# For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
# PYTHON_IMAGE may be pinned by digest in your registry: --build-arg PYTHON_IMAGE=python@sha256:…
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=""
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/vla
# What is installed first changes least: a change of our code does not fetch torch again.
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c constraints.txt torch setuptools wheel ninja \
    && DS_BUILD_OPS=0 .venv/bin/pip install --no-cache-dir --no-build-isolation \
        -c constraints.txt deepspeed
COPY envs envs
COPY vlm4vla vlm4vla
COPY platform platform
COPY dashboards dashboards
COPY jobs jobs
COPY infra infra
RUN .venv/bin/pip install --no-cache-dir --no-build-isolation -c constraints.txt -e '.[diffusion]' \
    && python -m compileall -q envs vlm4vla platform jobs

FROM ${PYTHON_IMAGE}
# g++: DeepSpeed compiles a small module when a process first needs it. tini: no zombies.
# openssh-client and rsync: Ray's launcher needs them inside a head's container. wget: KubeRay.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ openssh-client rsync tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 vla \
    && useradd --uid 1000 --gid vla --create-home vla \
    && install -d -o vla -g vla /var/lib/vla /var/lib/vla/cache
COPY --from=build /opt/vla /opt/vla
ENV PATH=/opt/vla/.venv/bin:$PATH \
    HOME=/home/vla \
    VLA_HOME=/var/lib/vla \
    HF_HOME=/var/lib/vla/cache/huggingface \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_max_direct_call_object_size=1048576 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/vla
USER 1000:1000
HEALTHCHECK --interval=60s --timeout=60s --start-period=120s --retries=3 \
    CMD ["python", "-m", "envs", "preflight", "tabletop"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "envs", "preflight"]
