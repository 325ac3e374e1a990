# shellcheck shell=bash
# What a pull and a push bring by each way to the registry, against a registry without us; and what its supervisor adds to a start.

client=192.168.1.82
mib=256

# The tutorial's registry, as it is made by hand, on an agent of its own: the measure of all ways.
bare_registry() {
  local host=192.168.1.81
  on "$host" sh -c "mkdir -p /etc/privateregistry/certs && cd /etc/privateregistry/certs && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 \
    -nodes -keyout domain.key -x509 -days 2 -out domain.crt -subj /CN=bare -addext subjectAltName=IP:$host 2>/dev/null"
  jq -n --arg host "^${host//./\\.}\$" '{
    id: "/bare", cpus: 0.5, mem: 512, instances: 1, constraints: [["hostname", "LIKE", $host]],
    container: { type: "DOCKER", docker: { image: "registry:2.8.3", network: "BRIDGE", portMappings: [{ containerPort: 5000, protocol: "tcp" }] },
      volumes: [{ containerPath: "/certs/", hostPath: "/etc/privateregistry/certs/", mode: "RO" },
        { containerPath: "/var/lib/registry", hostPath: "/data/docker-registry", mode: "RW" }] },
    env: { REGISTRY_HTTP_TLS_CERTIFICATE: "/certs/domain.crt", REGISTRY_HTTP_TLS_KEY: "/certs/domain.key", REGISTRY_HTTP_SECRET: "bare" }
  }' >"$dir/bare.json"
  dcos marathon app add "$dir/bare.json" >/dev/null
}

address_of() { master curl -sf "$admin/service/marathon/v2/apps/$1" | jq -r '.app.tasks[0] | "\(.host):\(.ports[0])"'; }

# by <address> <curl's arguments …>: as docker does, by HTTP/1.1; whose certificate it is makes no difference to the time.
by() { on "$client" curl --silent --show-error --fail --insecure --http1.1 "${@:2}"; }

# Prints the seconds that a push of the blob takes: an upload is begun, filled in one stream, and closed with its digest.
push() {
  local address=$1 began location
  began=$(date +%s.%N)
  location=$(by "$address" --request POST --output /dev/null --dump-header - "https://$address/v2/bench/blob/blobs/uploads/" |
    tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  [ -n "$location" ] || fail "$address begins no upload"
  [[ $location == https:* ]] || location=https://$address$location
  location=$(by "$address" --request PATCH --header 'Content-Type: application/octet-stream' --upload-file /tmp/blob --output /dev/null --dump-header - "$location" |
    tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  [[ $location == https:* ]] || location=https://$address$location
  by "$address" --request PUT --output /dev/null "$location&digest=sha256:$digest"
  awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { printf "%.3f", b - a }'
}

# Prints the seconds that a pull takes, by curl's own clock.
pull() { by "$1" --output /dev/null --write-out '%{time_total}' "https://$1/v2/bench/blob/blobs/sha256:$digest"; }

# Median, smallest and largest of the rates of a file of seconds.
rates() {
  sort -n "$1" | awk -v mib="$mib" '{ s[NR] = $1 } END { m = NR % 2 ? s[(NR + 1) / 2] : (s[NR / 2] + s[NR / 2 + 1]) / 2
    printf "%.0f (%.0f–%.0f)", mib / m, mib / s[NR], mib / s[1] }'
}

# Restarts an app on an agent where no container is started later than its own, and prints the milliseconds from the container's start, as docker has
# it, to the registry's word that it listens.
start_takes() {
  local app=$1 host=$2 task
  task=$(master curl -sf "$admin/service/marathon/v2/apps/$app" | jq -r '.app.tasks[0].id')
  # A deployment of before may still hold the app.
  restarts() { master curl -sf -X POST "$admin/service/marathon/v2/apps/$app/restart" >/dev/null; }
  wait_for 60 "a restart of $app to be taken" restarts
  listens() {
    [ "$(master curl -sf "$admin/service/marathon/v2/apps/$app" | jq -r --arg task "$task" '[.app.tasks[] | select(.id != $task and .state == "TASK_RUNNING")] | length')" = 1 ] &&
      on "$host" sh -c 'container=$(docker ps --latest --quiet) && docker inspect --format "{{.State.StartedAt}}" $container && docker logs $container 2>&1 | grep "listening on"' >"$dir/start"
  }
  wait_for 60 "$app to be started again" listens
  sed 's/.*time="\([^"]*\)".*/\1/' "$dir/start" | while read -r time; do date --date "$time" +%s.%N; done | awk 'NR == 1 { from = $1 } NR == 2 { printf "%.0f", 1000 * ($1 - from) }'
}

path() {
  local rounds=${1:-9} round way
  [[ $rounds =~ ^[1-9][0-9]?$ ]] || fail "say how many rounds, from 1 to 99"
  set_up
  cluster --agents 3 --public 1
  install_package "{\"registry\": {\"host\": \"$registry_host\", \"log_level\": \"info\"}, \"names\": {\"external_host\": \"192.168.1.50\"}}"
  bare_registry
  serves() { local address; address=$(address_of bare) && [[ $address != null* ]] && by "$address" --output /dev/null "https://$address/v2/" 2>/dev/null; }
  wait_for 60 "the registry made by hand" serves
  declare -A address=([bare]=$(address_of bare) [direct]=$(address_of registry) [vip]=$vip:443 [lb]=192.168.1.50:5000)
  on "$client" head -c "${mib}M" /dev/urandom >"$dir/blob"
  digest=$(sha256sum "$dir/blob" | cut -d' ' -f1)
  on "$client" sh -c 'cat >/tmp/blob' <"$dir/blob"
  for way in bare direct vip lb; do push "${address[$way]}" >/dev/null; pull "${address[$way]}" >/dev/null; done
  for round in $(seq "$rounds"); do
    say "round $round of $rounds"
    for way in bare direct vip lb; do
      push "${address[$way]}" >>"$dir/push.$way"
      echo >>"$dir/push.$way"
      pull "${address[$way]}" >>"$dir/pull.$way"
      echo >>"$dir/pull.$way"
    done
  done
  sed -i '/^$/d' "$dir"/push.* "$dir"/pull.*
  echo
  echo "A blob of $mib MiB from and to an agent that has no registry, $rounds rounds by turns: MiB a second, median (least–most)"
  echo
  echo '| way | pull | push |'
  echo '|---|---|---|'
  row() { echo "| $1 | $(rates "$dir/pull.$2") | $(rates "$dir/push.$2") |"; }
  row 'a registry made by hand, reached directly' bare
  row 'ours, reached directly' direct
  row 'ours, through its VIP' vip
  row 'ours, through Marathon-LB' lb
  echo
  # Certificate and key are at hand: what ours takes longer is the supervisor's own time.
  : >"$dir/start.bare" >"$dir/start.ours"
  for round in $(seq "$rounds"); do
    { start_takes bare 192.168.1.81 && echo; } >>"$dir/start.bare"
    { start_takes registry "$registry_host" && echo; } >>"$dir/start.ours"
  done
  times() { sort -n "$1" | awk '{ s[NR] = $1 } END { print "median " s[int((NR + 1) / 2)] " ms (" s[1] "–" s[NR] ")" }'; }
  echo "From a container's start to a registry that listens, $rounds restarts by turns: by hand $(times "$dir/start.bare"), ours $(times "$dir/start.ours")"
}
