# The platform with the interpreters of some simulators beside it, in one image for every node.
#   docker build -f infra/images/simulator.Dockerfile --build-arg SIMULATORS="libero calvin" \
#       -t vla-libero-calvin:0.1.0 .
# One image of each, and one of all: docker buildx bake -f infra/images/docker-bake.hcl
ARG PLATFORM=vla-platform:0.1.0

FROM ${PLATFORM} AS build
ARG SIMULATORS
# hadolint ignore=DL3002
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make git cmake \
    && rm -rf /var/lib/apt/lists/*
# The same script as `make libero`, so an image and a laptop have the same interpreter.
RUN : "${SIMULATORS:?name some: --build-arg SIMULATORS=\"libero calvin\"}" \
    && apt-get update \
    && for simulator in $SIMULATORS; do \
        PYTHON=/usr/local/bin/python3.11 bash infra/simulators/setup.sh "$simulator" || exit 1; \
    done \
    && rm -rf /var/lib/apt/lists/*

FROM ${PLATFORM}
ARG SIMULATORS
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The libraries that these simulators render with: the second column of system-NAME.txt, if any.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && for simulator in $SIMULATORS; do cat "infra/simulators/system-$simulator.txt" || true; done \
        | { grep -v '^#' || true; } | cut -d' ' -f2 | sort -u \
        | xargs --no-run-if-empty apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*
# git, and its files ours: CALVIN asks its own checkout for its commit.
COPY --from=build --chown=1000:1000 /var/lib/vla/simulators /var/lib/vla/simulators
ENV VLA_SIMULATORS=$SIMULATORS
USER 1000:1000
# A frame is rendered and looked at: an image whose driver is missing never becomes healthy.
HEALTHCHECK --interval=600s --timeout=480s --start-period=300s --retries=2 \
    CMD ["bash", "-c", "python -m envs preflight $VLA_SIMULATORS"]
