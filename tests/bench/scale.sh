# shellcheck shell=bash
# The controller in front of very many agents, which are played (tests/bench/scale.rs).

scale() {
  local sizes=("$@") program
  [ $# -gt 0 ] || sizes=(100 1000 10000)
  ci/setup
  ci/package --base-url http://universe.lab:8000 >/dev/null
  program=$(cargo build --quiet --locked --bench scale --message-format=json | jq -r 'select(.executable and .target.name == "scale").executable')
  "$program" target/package/private-registry "${sizes[@]}"
}
