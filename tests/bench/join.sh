# shellcheck shell=bash
# What an agent that joins waits for: the controller, from its registration to the order to Marathon; and the node, from its start to its
# proof. In between it waits for Marathon and Mesos.

# When a line was logged, in milliseconds.
logged_at() { date -d "$(grep -m 1 -o '^[^ ]*Z' <<<"$1")" +%s%3N; }

join() {
  local joins=${1:-5} ip line registered ordered started proven
  set_up
  cluster --agents 3 --public 0 --no-marathon-lb
  install_package "{\"registry\": {\"host\": \"$registry_host\"}, \"exposure\": {\"marathon_lb\": false}}"
  rm -f "$dir.table"
  for _ in $(seq "$joins"); do
    ip=$("$lab" --dir "$dir" agent add | grep -oE '[0-9]+(\.[0-9]+){3}' | head -n 1)
    trusted() { master curl -sf "$admin/service/private-registry/v1/status" | jq -e --arg ip "$ip" '.agents[] | select(.host == $ip) | .state == "trusted"' >/dev/null 2>&1; }
    wait_for 120 "the agent $ip to be trusted" trusted
    registered=$(master curl -sf http://master.mesos:5050/slaves | jq --arg ip "$ip" '.slaves[] | select(.hostname == $ip) | .registered_time * 1000 | floor')
    ordered=$(logged_at "$(dcos private-registry logs controller --lines 200 2>/dev/null | grep -oE '[0-9T:.-]+Z .*run the node on .* have no node' | tail -n 1)")
    line=$(dcos private-registry logs "$ip" --lines 200 2>/dev/null | grep -oE '[0-9T:.-]+Z .*')
    started=$(logged_at "$(grep -m 1 'node starts' <<<"$line")")
    proven=$(logged_at "$(grep -m 1 'the registry is trusted on this host' <<<"$line")")
    printf '| %s | %s | %s |\n' "$ip" $((ordered - registered)) $((proven - started)) | tee -a "$dir.table"
  done
  echo
  echo '| agent | from its registration to the order to Marathon, ms | from the start of its node to the proof, ms |'
  echo '|---|---|---|'
  cat "$dir.table"
  rm -f "$dir.table"
}
