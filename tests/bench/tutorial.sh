# shellcheck shell=bash
# The tutorial's way against ours: its loops of ssh and scp, the same by Ansible, and the package. Agents have a real sshd that lets root in by key.

ansible=$PWD/target/ansible

set_up_ssh() {
  local missing=()
  for package in openssh-client openssh-server sudo; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    # No sshd for this machine itself: the agents of the lab have their own.
    printf '#!/bin/sh\nexit 101\n' >target/policy-rc.d && chmod +x target/policy-rc.d
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
      fail "apt-get could not install ${missing[*]}."
  fi
  if [ ! -x "$ansible/bin/ansible-playbook" ]; then
    say "installing ansible-core"
    python3 -m venv "$ansible" && "$ansible/bin/python" -m pip --disable-pip-version-check --quiet install ansible-core==2.18.6 ||
      fail "pip could not install ansible-core."
  fi
}

# A cluster of so many agents, on each of which a container runs and a sshd lets root in by key.
cluster_with_ssh() {
  local private=$1 public=0
  [ "$1" -le 20 ] || { private=20; public=$(($1 - 20)); }
  cluster --agents "$private" --public "$public" --no-marathon-lb
  [ "$(wc -w <<<"$agents")" = "$1" ] || fail "there are $(wc -w <<<"$agents") agents and not $1"
  mkdir -p "$dir/home/.ssh" "$dir/sshd" && chmod 700 "$dir/home/.ssh"
  ssh-keygen -q -t ed25519 -N '' -f "$dir/home/.ssh/id_ed25519"
  ssh-keygen -q -t ed25519 -N '' -f "$dir/sshd/host_key"
  cp "$dir/home/.ssh/id_ed25519.pub" "$dir/sshd/authorized_keys"
  printf 'HostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n' \
    /etc/bench-sshd/host_key /etc/bench-sshd/authorized_keys >"$dir/sshd/config"
  # ssh looks up the home in passwd, and not in the environment.
  printf 'Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile %s\n  IdentityFile %s\n  LogLevel ERROR\n' \
    "$dir/home/.ssh/known_hosts" "$dir/home/.ssh/id_ed25519" >"$dir/home/.ssh/config"
  for agent in $agents; do
    cp -r "$dir/sshd" "$dir/agents/$agent/root/etc/bench-sshd"
    on "$agent" sh -c "mkdir -p /run/sshd && echo 127.0.1.1 \$(hostname) >>/etc/hosts && /usr/sbin/sshd -f /etc/bench-sshd/config && docker run --detach --name canary canary:1 >/dev/null"
    on "$agent" docker inspect --format '{{.State.Pid}}' canary >"$dir/canary.$agent"
  done
}

tutorials_certificate() {
  mkdir -p "$dir/certs"
  (cd "$dir/certs" && openssl req -newkey rsa:2048 -nodes -keyout domain.key -x509 -days 365 -out domain.crt \
    -subj "/C=CN/ST=SH/L=Shang Hai/O=example.com/CN=192.168.0.1" -addext subjectAltName=IP:192.168.0.1 2>/dev/null)
}

tutorials_registry() {
  jq -n --arg host "^${registry_host//./\\.}\$" '{
    id: "/registry", cpus: 0.5, mem: 128, instances: 1, constraints: [["hostname", "LIKE", $host]],
    container: { type: "DOCKER", docker: { image: "registry:2.8.3", network: "BRIDGE",
      portMappings: [{ containerPort: 5000, protocol: "tcp", servicePort: 5000, labels: { VIP_0: "192.168.0.1:443" } }] },
      volumes: [{ containerPath: "/certs/", hostPath: "/etc/privateregistry/certs/", mode: "RO" },
        { containerPath: "/var/lib/registry", hostPath: "/data/docker-registry", mode: "RW" }] },
    env: { REGISTRY_HTTP_TLS_CERTIFICATE: "/certs/domain.crt", REGISTRY_HTTP_TLS_KEY: "/certs/domain.key", REGISTRY_HTTP_SECRET: "123456secret" }
  }' >"$dir/registry.json"
  dcos marathon app add "$dir/registry.json" >/dev/null
}

# The loops of the tutorial, as they stand there but for the options of ssh, which are in its configuration.
by_loops() {
  tutorials_certificate
  cat >"$dir/loops.sh" <<'LOOPS'
set -e
cd "$(dirname "$0")/certs"
ssh() { command ssh -F "$HOME/.ssh/config" "$@" </dev/null; }
scp() { command scp -q -F "$HOME/.ssh/config" "$@" </dev/null; }
MESOS_AGENTS=$(curl -sS leader.mesos:5050/slaves | jq '.slaves[] | .hostname' | tr -d '"')
for i in $MESOS_AGENTS; do ssh "$i" "sudo sysctl -q -w net.netfilter.nf_conntrack_tcp_be_liberal=1"; done
for i in $MESOS_AGENTS; do ssh "$i" "sudo mkdir --parent /etc/privateregistry/certs/"; done
for i in $MESOS_AGENTS; do scp ./domain.* "$i":/tmp/; done
for i in $MESOS_AGENTS; do ssh "$i" "sudo mv /tmp/domain.* /etc/privateregistry/certs/"; done
for i in $MESOS_AGENTS; do ssh "$i" "sudo mkdir --parent /etc/docker/certs.d/192.168.0.1"; done
for i in $MESOS_AGENTS; do ssh "$i" "sudo cp /etc/privateregistry/certs/domain.crt /etc/docker/certs.d/192.168.0.1/ca.crt"; done
for i in $MESOS_AGENTS; do ssh "$i" "sudo systemctl restart docker"; done
LOOPS
  master bash "$dir/loops.sh"
  tutorials_registry
}

by_ansible() {
  tutorials_certificate
  { echo '[agents]'; for agent in $agents; do echo "$agent"; done; } >"$dir/inventory"
  cp tests/bench/by-hand.yml "$dir/certs/"
  master env ANSIBLE_HOST_KEY_CHECKING=False ANSIBLE_SSH_ARGS="-F $dir/home/.ssh/config -o ControlMaster=auto -o ControlPersist=60s" \
    ANSIBLE_SSH_CONTROL_PATH_DIR="$dir/home/cp" ANSIBLE_LOCAL_TEMP="$dir/home/tmp" ANSIBLE_PYTHON_INTERPRETER=/usr/bin/python3 LC_ALL=C.UTF-8 \
    "$ansible/bin/ansible-playbook" --user root --forks "$1" --inventory "$dir/inventory" "$dir/certs/by-hand.yml" >"$dir/logs/ansible.log" 2>&1 ||
    fail "the playbook has failed: $(tail -n 3 "$dir/logs/ansible.log")"
  tutorials_registry
}

by_package() {
  install_package "{\"registry\": {\"host\": \"$registry_host\"}, \"exposure\": {\"marathon_lb\": false}}"
}

# The first push is a client's, not the operator's: it shows that the registry serves.
pull_everywhere() {
  on "$registry_host" docker tag canary:1 "$vip/base/canary:1"
  pushed() { on "$registry_host" docker push --quiet "$vip/base/canary:1" >/dev/null 2>&1; }
  wait_for 120 "the registry to take an image" pushed
  pulls=$(date +%s.%N)
  # shellcheck disable=SC2086
  printf '%s\n' $agents | xargs -P 8 -I{} "$lab" --dir "$dir" exec {} -- docker pull --quiet "$vip/base/canary:1" >/dev/null ||
    fail "an agent cannot pull"
  pulls=$(since "$pulls")
}

# Whether a file of an agent is the private key of the certificate that the registry serves with.
holds_the_key() {
  on "$1" sh -c "served=\$(openssl s_client -connect $vip:443 </dev/null 2>/dev/null | openssl x509 -noout -pubkey) && [ -n \"\$served\" ] &&
    grep -rlsI 'PRIVATE KEY' /etc /root /home /tmp /var/lib/private-registry | while read -r file; do
      [ \"\$(openssl pkey -in \"\$file\" -pubout 2>/dev/null)\" != \"\$served\" ] || echo \"\$file\"; done | grep -q ."
}

measure() {
  local agents_wanted=$1 name=$2 ended=0 keys=0 agent began spread pulls
  shift 2
  cluster_with_ssh "$agents_wanted"
  began=$(date +%s.%N)
  "$@"
  spread=$(since "$began")
  pull_everywhere
  local seconds
  seconds=$(since "$began")
  for agent in $agents; do
    [ "$(on "$agent" docker inspect --format '{{.State.Running}} {{.State.Pid}}' canary)" = "true $(cat "$dir/canary.$agent")" ] || ended=$((ended + 1))
    [ "$agent" = "$registry_host" ] || ! holds_the_key "$agent" || keys=$((keys + 1))
  done
  printf '| %s | %s | %s s | %s s | %s s | %s | %s |\n' "$agents_wanted" "$name" "$spread" "$seconds" "$pulls" "$ended" "$keys" | tee -a "$dir.table"
}

tutorial() {
  local sizes=("$@")
  [ $# -gt 0 ] || sizes=(3 10 30)
  set_up
  set_up_ssh
  rm -f "$dir.table"
  for size in "${sizes[@]}"; do
    say "$size agents"
    measure "$size" "the tutorial's loops" by_loops
    measure "$size" "Ansible, 5 forks" by_ansible 5
    measure "$size" "Ansible, 50 forks" by_ansible 50
    measure "$size" "the package" by_package
  done
  echo
  echo '| agents | by | spread and registry ordered after | every agent has pulled after | of it the pulls | containers ended | agents with a key that they do not use |'
  echo '|---|---|---|---|---|---|---|'
  cat "$dir.table"
  rm -f "$dir.table"
}
