{{/*
What cannot work is refused before anything is installed. Each refusal names the value and says what
to do. Whether the configuration itself is good, only the proxy knows: `holdfast config check`.
*/}}
{{- define "holdfast.refusals" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository: there is no published image; build one from the Dockerfile, push it, and write its name here" -}}
{{- end -}}
{{- include "holdfast.refusals.config" . -}}
{{- include "holdfast.refusals.secrets" . -}}
{{- include "holdfast.refusals.replicas" . -}}
{{- $server := default dict .Values.config.server -}}
{{- $cache := default dict .Values.config.cache -}}
{{- if and (not .Values.persistence.cache.enabled) (not (hasKey $cache "max_size")) -}}
{{- fail "persistence.cache.enabled is false, so the cache is on the node's disk: write config.cache.max_size, or it fills the node" -}}
{{- end -}}
{{- if and (or .Values.ingress.enabled .Values.gateway.enabled) (not (or $server.trusted_proxies $server.public_url)) -}}
{{- fail "ingress.enabled or gateway.enabled: write config.server.trusted_proxies (the addresses that the ingress or gateway comes from) or config.server.public_url, or cargo is sent to an address of another scheme" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.enabled: write ingress.host" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.enabled: write gateway.parentRefs, the Gateways to attach to" -}}
{{- end -}}
{{- end -}}

{{/* The chart's own keys: written twice, one of the two would be ignored. */}}
{{- define "holdfast.refusals.config" -}}
{{- $ours := dict
  "server.listen" "ipFamily and service.port say where the proxy is reached"
  "server.admin_listen" "the chart keeps probes and metrics on port 9090"
  "server.drain" "write shutdown.drainSeconds, which the pod's grace period follows"
  "server.tls" "write tls.existingSecret"
  "cache.dir" "the volume of persistence.cache is there"
  "state.dir" "the volume of persistence.state is there" -}}
{{- range $key, $instead := $ours -}}
{{- $words := splitList "." $key -}}
{{- if hasKey (default dict (index $.Values.config (first $words))) (last $words) -}}
{{- fail (printf "config.%s is the chart's to set: %s" $key $instead) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
A secret that is not there, and one that would open a registry by oversight: the pod would not start.
It always listens beyond its machine, so that whoever reaches it may read what a token opens.
*/}}
{{- define "holdfast.refusals.secrets" -}}
{{- $upstreams := default dict .Values.config.upstreams -}}
{{- $variables := list -}}
{{- range .Values.env -}}{{- $variables = append $variables .name -}}{{- end -}}
{{- range $name, $upstream := $upstreams -}}
{{- $token := default dict $upstream.token -}}
{{- range $key, $file := dict "token.file" $token.file "ca_file" $upstream.ca_file "client_cert" $upstream.client_cert "client_key" $upstream.client_key -}}
{{- if and (not $.Values.existingSecret) (hasPrefix "/run/secrets/holdfast/" (default "" $file)) -}}
{{- fail (printf "config.upstreams.%s.%s is below /run/secrets/holdfast, and nothing is there: write existingSecret, the Secret whose keys are files there" $name $key) -}}
{{- end -}}
{{- end -}}
{{- if and $token.env (not (has $token.env $variables)) -}}
{{- fail (printf "config.upstreams.%s.token.env names a variable that env does not have: add it there with valueFrom.secretKeyRef, or use token.file" $name) -}}
{{- end -}}
{{- end -}}
{{- $registries := dict -}}
{{- range $name, $_ := $upstreams -}}{{- $_ := set $registries $name dict -}}{{- end -}}
{{- range $name, $registry := merge (deepCopy (default dict .Values.config.registries)) $registries -}}
{{- range $member := default (list $name) $registry.upstreams -}}
{{- if and (default dict (index $upstreams $member)).token (not $registry.access) -}}
{{- fail (printf "config.registries.%s.access: upstreams.%s has a token, and everyone who reaches the proxy could read what it opens. If they may (see networkPolicy.clients), write access: open" $name $member) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* One process owns a cache and a state; what several replicas would have to share, they do not. */}}
{{- define "holdfast.refusals.replicas" -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- range $name := list "cache" "state" -}}
{{- if (index $.Values.persistence $name).existingClaim -}}
{{- fail (printf "replicas: %d replicas cannot share persistence.%s.existingClaim; one process holds a volume. Leave it empty, and each replica gets its own" (int $.Values.replicas) $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $registry := default dict .Values.config.registries -}}
{{- if eq (toString $registry.access) "token" -}}
{{- fail (printf "replicas: config.registries.%s.access is token, and tokens made in one replica are unknown to the others; use 1" $name) -}}
{{- end -}}
{{- if gt (len (default list $registry.upstreams)) 1 -}}
{{- fail (printf "replicas: config.registries.%s merges upstreams, and each replica would record owners of its own; use 1" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
