{{- define "driftd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "driftd.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "driftd.labels" -}}
{{ include "driftd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Which pods answer requests. */}}
{{- define "driftd.serving" -}}
{{- if eq .Values.mode "together" }}daemon{{ else }}server{{ end -}}
{{- end }}

{{/* The reference of an image. Takes a list: the root, the image's values. */}}
{{- define "driftd.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := $root.Values.global.imageRegistry | default $root.Values.image.registry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{- define "driftd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "driftd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "driftd.registryClaim" -}}
{{- default (printf "%s-registry" (include "driftd.fullname" .)) .Values.registry.existingClaim -}}
{{- end }}

{{/* Where the registry lies: "s3", "claim", or "data", the daemon's own volume. */}}
{{- define "driftd.store" -}}
{{- if .Values.registry.s3.url }}s3{{ else if eq .Values.mode "apart" }}claim{{ else }}data{{ end -}}
{{- end }}

{{/* "yes" where daemons may share a model, else nothing. */}}
{{- define "driftd.shared" -}}
{{- if dig "sharing" "enabled" false .Values.config -}}yes{{- end -}}
{{- end }}

{{/* "yes" where there may be more than one of them. */}}
{{- define "driftd.several" -}}
{{- with .Values.daemon -}}
{{- if gt (int (ternary .keda.maxReplicas .replicas .keda.enabled)) 1 -}}yes{{- end -}}
{{- end -}}
{{- end }}

{{- define "driftd.trainingClaim" -}}
{{- default (printf "%s-training" (include "driftd.fullname" .)) .Values.training.volume.existingClaim -}}
{{- end }}

{{/* driftd.yaml: what the user says, with the chart's paths and addresses. */}}
{{- define "driftd.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $name := $config.name | default "model" -}}
{{- $ours := dict
  "registry" (dict "path" "/var/lib/driftd/registry")
  "checkpoint" (dict "path" "/var/lib/driftd/state" "store" (ternary "folder" "registry" .Values.daemon.persistence.enabled))
  "http" (dict "host" "0.0.0.0" "port" 8081)
  "server" (dict "host" "0.0.0.0" "port" 8080 "workers" .Values.server.workers
    "notice_seconds" .Values.server.drain.notice "drain_seconds" .Values.server.drain.drain) -}}
{{- if .Values.daemon.tokensSecret.name -}}
{{- $_ := set $ours.http "access" (dict "tokens" "/etc/driftd/daemon-tokens/tokens") -}}
{{- end -}}
{{- if .Values.daemon.tlsSecret -}}
{{- $_ := set $ours.http "tls" (dict "certificate" "/etc/driftd/daemon-tls/tls.crt" "key" "/etc/driftd/daemon-tls/tls.key") -}}
{{- end -}}
{{- if .Values.server.grpc -}}
{{- $_ := set $ours.server "grpc_port" 8001 -}}
{{- end -}}
{{- if .Values.server.tokensSecret.name -}}
{{- $_ := set $ours.server "access" (dict "tokens" "/etc/driftd/tokens/tokens") -}}
{{- end -}}
{{- if .Values.server.tlsSecret -}}
{{- $_ := set $ours.server "tls" (dict "certificate" "/etc/driftd/server-tls/tls.crt" "key" "/etc/driftd/server-tls/tls.key") -}}
{{- end -}}
{{- if .Values.server.traces.endpoint -}}
{{- $_ := set $ours.server "traces" true -}}
{{- end -}}
{{- with .Values.server.predictionLog -}}
{{- $log := dict -}}
{{- if .saslSecret.name -}}
{{- $_ := set $log "sasl_password_file" "/etc/driftd/log-sasl/password" -}}
{{- end -}}
{{- if .tlsSecret.name -}}
{{- $_ := set $log "tls_ca_file" "/etc/driftd/log-tls/ca.crt" -}}
{{- if .tlsSecret.client -}}
{{- $_ := set $log "tls_cert_file" "/etc/driftd/log-tls/tls.crt" -}}
{{- $_ := set $log "tls_key_file" "/etc/driftd/log-tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- if $log -}}
{{- $_ := set $ours.server "prediction_log" $log -}}
{{- end -}}
{{- end -}}
{{- if .Values.kafka.saslSecret.name -}}
{{- $_ := set $ours "source" (dict "sasl_password_file" "/etc/driftd/sasl/password") -}}
{{- end -}}
{{- if .Values.kafka.tlsSecret.name -}}
{{- $tls := dict "tls_ca_file" "/etc/driftd/tls/ca.crt" -}}
{{- if .Values.kafka.tlsSecret.client -}}
{{- $_ := set $tls "tls_cert_file" "/etc/driftd/tls/tls.crt" -}}
{{- $_ := set $tls "tls_key_file" "/etc/driftd/tls/tls.key" -}}
{{- end -}}
{{- $_ := set $ours "source" (merge (get $ours "source" | default dict) $tls) -}}
{{- end -}}
{{- if .Values.kafka.schemaRegistrySecret.name -}}
{{- $login := dict "schema_registry" (dict "password_file" "/etc/driftd/schemas/password") -}}
{{- $_ := set $ours "source" (merge (get $ours "source" | default dict) $login) -}}
{{- end -}}
{{- if .Values.signing.privateSecret.name -}}
{{- $_ := set $ours.registry "signing_key" "/etc/driftd/signing/key" -}}
{{- end -}}
{{- if .Values.signing.publicSecret.name -}}
{{- $keys := list -}}
{{- range .Values.signing.publicSecret.keys -}}{{- $keys = append $keys (printf "/etc/driftd/trusted/%s" .) -}}{{- end -}}
{{- $_ := set $ours.registry "trusted_keys" $keys -}}
{{- end -}}
{{- with .Values.registry.s3 -}}
{{- if .url -}}
{{- $_ := set $ours "registry" (merge (dict "path" .url "cache" "/var/cache/driftd") $ours.registry) -}}
{{- if .endpoint -}}{{- $_ := set $ours.registry "endpoint" .endpoint -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.training.job.enabled -}}
{{- $job := dict "enabled" true "template" "/etc/driftd/training-job.yaml" "folder" "/var/lib/driftd-training/jobs" -}}
{{- $_ := set $ours "trainer" (dict "job" $job) -}}
{{- end -}}
{{- $defaults := dict
  "name" $name
  "log" (dict "format" "json")
  "server" (dict "name" $name) -}}
{{- if not $config.dead_letters -}}
{{- $_ := set $defaults "dead_letters" (dict "kind" "file" "path" "/var/lib/driftd/state/dead-letters.jsonl") -}}
{{- end -}}
{{- toYaml (merge $ours $config $defaults) -}}
{{- end }}

{{/* Of it what the server reads, so that it is not restarted by a change of anything else. */}}
{{- define "driftd.serverConfig" -}}
{{- $config := include "driftd.config" . | fromYaml -}}
{{- $_ := unset $config.registry "signing_key" -}}
{{- toYaml (pick $config "registry" "server" "http" "log") -}}
{{- end }}

{{/* Said in words, where the schema could only say no. */}}
{{- define "driftd.check" -}}
{{- if not .Values.config.source -}}
{{- fail "config.source is missing: say where events come from, as in the chart's README" -}}
{{- end -}}
{{- with .Values.server.predictionLog -}}
{{- if and (or .saslSecret.name .tlsSecret.name) (not (dig "server" "prediction_log" false $.Values.config)) -}}
{{- fail "server.predictionLog has secrets for config.server.prediction_log, which is missing: say which topic" -}}
{{- end -}}
{{- end -}}
{{- $stop := dig "checkpoint" "stop_seconds" 25.0 .Values.config -}}
{{- if gt (addf $stop 5.0) (float64 .Values.daemon.terminationGracePeriodSeconds) -}}
{{- fail (printf "daemon.terminationGracePeriodSeconds must be 5 more than config.checkpoint.stop_seconds (%v)" $stop) -}}
{{- end -}}
{{- if eq .Values.mode "together" -}}
{{- if .Values.server.autoscaling.enabled -}}
{{- fail "server.autoscaling needs mode: apart, as the servers of `together` live in the daemon's pod" -}}
{{- end -}}
{{- if .Values.server.kserve.enabled -}}
{{- fail "server.kserve needs mode: apart" -}}
{{- end -}}
{{- if .Values.registry.existingClaim -}}
{{- fail "registry.existingClaim needs mode: apart; `together` keeps the registry on the daemon's volume" -}}
{{- end -}}
{{- if .Values.registry.s3.url -}}
{{- fail "registry.s3 needs mode: apart; `together` keeps the registry on the daemon's volume" -}}
{{- end -}}
{{- if not .Values.daemon.persistence.enabled -}}
{{- fail "daemon.persistence.enabled: false needs mode: apart; `together` keeps the registry on the daemon's volume" -}}
{{- end -}}
{{- if include "driftd.several" . -}}
{{- fail "several daemons need mode: apart; `together` keeps the registry on the daemon's own volume" -}}
{{- end -}}
{{- if .Values.daemon.keda.enabled -}}
{{- fail "daemon.keda needs mode: apart, or the server would be stopped with the daemon" -}}
{{- end -}}
{{- end -}}
{{- if not .Values.daemon.persistence.enabled -}}
{{- if not (has (dig "dead_letters" "kind" "file" .Values.config) (list "topic" "none")) -}}
{{- fail "daemon.persistence.enabled: false leaves no place for a file of dead letters: config.dead_letters must have kind: topic, or none" -}}
{{- end -}}
{{- if dig "checkpoint" "ledger" false .Values.config -}}
{{- fail "config.checkpoint.ledger is a file, and needs daemon.persistence.enabled" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.server.kserve.enabled .Values.server.grpc -}}
{{- fail "server.grpc does not go with server.kserve, which leads to one port" -}}
{{- end -}}
{{- if and .Values.registry.s3.url .Values.registry.existingClaim -}}
{{- fail "registry.s3.url and registry.existingClaim are two places for one registry: give one" -}}
{{- end -}}
{{- if and .Values.server.kserve.enabled .Values.server.tlsSecret -}}
{{- fail "server.tlsSecret does not go with server.kserve, whose own gateway speaks TLS" -}}
{{- end -}}
{{- if and .Values.server.kserve.enabled (eq .Values.monitoring.scrape "ServiceMonitor") -}}
{{- fail "server.kserve needs monitoring.scrape: PodMonitor, as the Service is KServe's" -}}
{{- end -}}
{{- if and .Values.kafka.schemaRegistrySecret.name (not (dig "source" "schema_registry" "username" "" .Values.config)) -}}
{{- fail "kafka.schemaRegistrySecret needs config.source.schema_registry with url and username" -}}
{{- end -}}
{{- if and .Values.daemon.keda.enabled (ne (.Values.config.source).kind "kafka") -}}
{{- fail "daemon.keda needs config.source.kind: kafka" -}}
{{- end -}}
{{- end }}

{{/* Who may come in: the peers, if any are named, and `helm test`. Takes `root` and `peers`. */}}
{{- define "driftd.from" -}}
{{- if .peers -}}
from:
  {{- toYaml .peers | nindent 2 }}
  - podSelector:
      matchLabels:
        {{- include "driftd.selector" .root | nindent 8 }}
        app.kubernetes.io/component: test
{{- else -}}
from: []
{{- end -}}
{{- end }}
