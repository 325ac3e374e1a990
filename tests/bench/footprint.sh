# shellcheck shell=bash
# What each role takes of a host while nothing changes.

footprint() {
  local seconds=${1:-60} role
  set_up
  cluster --agents 2 --public 1 --no-marathon-lb
  install_package "{\"registry\": {\"host\": \"$registry_host\"}, \"exposure\": {\"marathon_lb\": false}}"
  # The last proofs, and the threads that they needed.
  sleep 30
  for role in node registry controller; do master "$PWD/tests/bench/processes" "$role" | sort >"$dir/before.$role"; done
  sleep "$seconds"
  for role in node registry controller; do master "$PWD/tests/bench/processes" "$role" | sort >"$dir/after.$role"; done
  printf '\nthe program: %s bytes\n\n' "$(stat -c %s target/package/private-registry)"
  echo "| role | resident KiB | of it anonymous | pages of the program | at most, ever | threads | CPU ms in $seconds s | wake-ups in $seconds s |"
  echo '|---|---|---|---|---|---|---|---|'
  for role in node registry controller; do
    join "$dir/before.$role" "$dir/after.$role" |
      awk -v role="$role" '{ printf "| %s | %d | %d | %d | %d | %d | %d | %d |\n", role, $9, $10, $11, $12, $13, $14 - $7, $15 - $8 }'
  done
}
