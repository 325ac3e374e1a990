# shellcheck shell=bash
# Which functions a node runs, as a traced one does: the linker puts them side by side.

layout() {
  local agent=192.168.1.81 root=$dir/agents/192.168.1.81/root/bench node
  set_up
  cluster --agents 2 --no-marathon-lb
  install_package "{\"registry\": {\"host\": \"$registry_host\"}, \"exposure\": {\"marathon_lb\": false}}"
  mkdir -p "$root"
  KEEP_SYMBOLS=yes ci/build >/dev/null
  mv target/x86_64-unknown-linux-gnu/release/private-registry "$root/program"
  nm -S --defined-only "$root/program" >"$root/symbols"
  nm --defined-only "$(cc -print-file-name=libc.a)" >"$root/libc" 2>/dev/null
  cp tests/bench/functions.py "$root"
  node=$(on "$agent" pgrep -n -f 'private-registry node$')
  on "$agent" cat "/proc/$node/environ" >"$root/environment"
  on "$agent" sh -c 'cd /bench && (sleep 10; curl -s http://127.0.0.1:29999/health http://127.0.0.1:29999/status
      curl -s -X PUT --data "{\"payload\":\"e30=\",\"signature\":\"AA==\"}" http://127.0.0.1:29999/order) >/dev/null &
    cd /bench && python3 functions.py environment /bench/program symbols libc 30 found'
  mv "$root/found" ci/node-functions.ld
}
