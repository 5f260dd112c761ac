#!/usr/bin/env bash
# A Vulkan driver for machines without a GPU: bash software-vulkan.sh FOLDER
#
# Debian 12's Mesa is too old for sapien, so this unpacks bookworm-backports' into FOLDER; the
# system stays as it is and root is not needed. Beside it lies a small layer that takes out the
# one thing sapien asks for that Mesa lacks (vulkan_layer.c), hence the C compiler.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1

give_up() {
    echo "SimplerEnv cannot draw on this machine: $1" >&2
    echo "(it needs an NVIDIA driver with Vulkan, or Debian 12 with apt-get and a C compiler)" >&2
    exit 1
}

. /etc/os-release
[ "${VERSION_CODENAME:-}" = bookworm ] || give_up "no GPU, and ${PRETTY_NAME:-this system} is not Debian 12"
command -v apt-get >/dev/null || give_up "no apt-get"
command -v cc >/dev/null || give_up "no C compiler (apt-get install -y gcc libc6-dev)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/debs "$work"/root
chmod -R a+rX "$work"
key=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in bookworm bookworm-backports; do
    echo "deb [signed-by=$key] http://deb.debian.org/debian $suite main"
done >"$work/sources.list"

# apt with lists and caches of its own
private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 "$@"
}

private_apt update >/dev/null || give_up "deb.debian.org cannot be reached"
(cd "$work/debs" && private_apt download mesa-vulkan-drivers/bookworm-backports \
    libvulkan1 libvulkan-dev >/dev/null) || give_up "the driver's packages cannot be downloaded"
for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/root"; done

libraries=$work/root/usr/lib/$(uname -m)-linux-gnu
rm -rf "$folder"
mkdir -p "$folder/layer"
cp -L "$libraries/libvulkan.so.1" "$libraries/libvulkan_lvp.so" "$folder"
cc -O2 -shared -fPIC -fvisibility=hidden -I"$work/root/usr/include" \
    -o "$folder/layer/libvla_layer.so" "$here/vulkan_layer.c"
dpkg-deb -f "$work"/debs/mesa-vulkan-drivers*.deb Version | sed 's/^/lavapipe, mesa /' >"$folder/version"
cat >"$folder/driver.json" <<JSON
{"file_format_version": "1.0.0",
 "ICD": {"library_path": "$folder/libvulkan_lvp.so", "api_version": "1.3.0"}}
JSON
cat >"$folder/layer/layer.json" <<JSON
{"file_format_version": "1.1.2",
 "layer": {"name": "VK_LAYER_VLA_software", "type": "GLOBAL", "api_version": "1.3.0",
  "library_path": "$folder/layer/libvla_layer.so", "implementation_version": "1",
  "description": "Lets sapien 2.2 draw with a software driver",
  "device_extensions": [{"name": "VK_KHR_external_semaphore_fd", "spec_version": "1"}]}}
JSON

lacking=$(ldd "$folder/libvulkan_lvp.so" | grep "not found" || true)
[ -z "$lacking" ] || give_up "the driver lacks libraries: apt-get install -y mesa-vulkan-drivers brings them
$lacking"
