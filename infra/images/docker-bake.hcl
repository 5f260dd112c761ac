# Every image: REGISTRY=registry.example.org/vla/ docker buildx bake -f infra/images/docker-bake.hcl
variable "REGISTRY" { default = "" }
variable "VERSION" { default = "0.1.0" }
variable "TORCH_INDEX" { default = "" }

group "default" {
  targets = ["platform", "simulator", "study"]
}

target "platform" {
  context    = "."
  dockerfile = "infra/images/platform.Dockerfile"
  args       = { TORCH_INDEX = TORCH_INDEX }
  tags       = ["${REGISTRY}vla-platform:${VERSION}"]
}

target "simulator" {
  matrix     = { simulator = ["libero", "calvin", "simpler"] }
  name       = simulator
  context    = "."
  contexts   = { "vla-platform:0.1.0" = "target:platform" }
  dockerfile = "infra/images/simulator.Dockerfile"
  args       = { SIMULATORS = simulator }
  tags       = ["${REGISTRY}vla-${simulator}:${VERSION}"]
}

# All simulators: the paper's tables mix them, and one image is on every node.
target "study" {
  context    = "."
  contexts   = { "vla-platform:0.1.0" = "target:platform" }
  dockerfile = "infra/images/simulator.Dockerfile"
  args       = { SIMULATORS = "libero calvin simpler" }
  tags       = ["${REGISTRY}vla-study:${VERSION}"]
}
