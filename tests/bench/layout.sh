# shellcheck shell=bash
# Which functions a node runs, as a traced one does: the linker puts them side by side.

layout() {
  local agent=192.168.1.81 root=$dir/agents/192.168.1.81/root/bench node port chain
  set_up
  cluster --agents 2 --no-marathon-lb
  install_package "{\"registry\": {\"host\": \"$registry_host\"}, \"exposure\": {\"marathon_lb\": false}}"
  mkdir -p "$root"
  KEEP_SYMBOLS=yes ci/build >/dev/null
  mv target/x86_64-unknown-linux-gnu/release/private-registry "$root/program"
  mv target/x86_64-unknown-linux-gnu/release/private-registry.map "$root/map"
  cp tests/bench/functions.py "$root"
  node=$(on "$agent" pgrep -n -f 'private-registry node$')
  on "$agent" cat "/proc/$node/environ" >"$root/environment"
  tr '\0' '\n' <"$root/environment" | sed -n 's/^PRIVATE_REGISTRY_FIRST_ORDER=//p' >"$root/order"
  # It finds an agent on which nothing has been done yet. The node that is there keeps still, and what it is sent goes to the traced one.
  on "$agent" kill -STOP "$node"
  port=$(tr '\0' '\n' <"$root/environment" | sed -n 's/^ENDPOINT_STATUS=//p')
  for chain in PREROUTING OUTPUT; do
    on "$agent" iptables --wait -t nat -I "$chain" -p tcp -m addrtype --dst-type LOCAL --dport "$port" -j REDIRECT --to-ports 29999
  done
  # The registry comes later than the node, as at an installation.
  on "$agent" iptables --wait -I OUTPUT -m conntrack --ctorigdst "$vip" -p tcp -j REJECT
  on "$agent" sh -c 'rm -rf /etc/docker/certs.d /var/lib/private-registry /var/lib/dcos/pki/tls/certs/* /etc/sysctl.d/*private-registry*
    echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal'
  on "$agent" sh -c 'cd /bench && (sleep 15; curl -s http://127.0.0.1:29999/health http://127.0.0.1:29999/status
      curl -s -X PUT --data @order http://127.0.0.1:29999/order
      curl -s -X PUT --data "{\"payload\":\"e30=\",\"signature\":\"AA==\"}" http://127.0.0.1:29999/order
      rm /etc/docker/certs.d/*/ca.crt) >answers &
    cd /bench && python3 functions.py environment /bench/program map 50 found' &
  sleep 5
  on "$agent" iptables --wait -D OUTPUT -m conntrack --ctorigdst "$vip" -p tcp -j REJECT
  sleep 15
  dcos private-registry rotate
  wait $!
  mv "$root/found" ci/node-functions.ld
}
