# The platform with one simulator's interpreter beside it, in one image for every node.
#   docker build -f infra/images/simulator.Dockerfile --build-arg SIMULATOR=libero \
#       -t vla-libero:0.1.0 .
# All of them at once: docker buildx bake -f infra/images/docker-bake.hcl
ARG PLATFORM=vla-platform:0.1.0

FROM ${PLATFORM} AS build
ARG SIMULATOR
# hadolint ignore=DL3002
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make git cmake \
    && rm -rf /var/lib/apt/lists/*
# The same script as `make libero`, so an image and a laptop have the same interpreter.
RUN apt-get update \
    && PYTHON=/usr/local/bin/python3.11 bash infra/simulators/setup.sh "$SIMULATOR" \
    && rm -rf /var/lib/apt/lists/*

FROM ${PLATFORM}
ARG SIMULATOR
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The libraries that this simulator renders with: the second column of system-NAME.txt, if any.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && { [ ! -f "infra/simulators/system-$SIMULATOR.txt" ] \
        || grep -v '^#' "infra/simulators/system-$SIMULATOR.txt" | cut -d' ' -f2 | sort -u \
        | xargs apt-get install -y --no-install-recommends; } \
    && rm -rf /var/lib/apt/lists/*
# git, and its files ours: CALVIN asks its own checkout for its commit.
COPY --from=build --chown=1000:1000 /var/lib/vla/simulators /var/lib/vla/simulators
ENV VLA_SIMULATOR=$SIMULATOR
USER 1000:1000
# A frame is rendered and looked at: an image whose driver is missing never becomes healthy.
HEALTHCHECK --interval=300s --timeout=240s --start-period=300s --retries=2 \
    CMD ["bash", "-c", "python -m envs preflight \"$VLA_SIMULATOR\""]
