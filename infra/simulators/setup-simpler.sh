#!/usr/bin/env bash
# What pip cannot do for SimplerEnv (called by setup.sh): its checkouts, a software Vulkan driver
# where there is no GPU, and the collision meshes that sapien would cook at first use.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=$1 src=$2
bash "$here/checkouts.sh" "$home" "$src" "$here/requirements-simpler.txt" SimplerEnv ManiSkill2_real2sim
[ -e /dev/nvidiactl ] || bash "$here/software-vulkan.sh" "$home/vulkan" || true
cd "$here/../.."
"$home/bin/python" -m envs.simpler_scene
