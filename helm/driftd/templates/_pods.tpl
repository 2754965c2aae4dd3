{{/* What all pods have in common. Takes a list: the root, the values of `daemon` or `server`. */}}
{{- define "driftd.pod" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
serviceAccountName: {{ include "driftd.serviceAccount" $root }}
automountServiceAccountToken: false
# Variables of the cluster's services would be taken for settings.
enableServiceLinks: false
securityContext:
  {{- toYaml $root.Values.podSecurity | nindent 2 }}
{{- with $root.Values.global.imagePullSecrets | default $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Over zones and nodes, where it can be. Takes a list: the root, the component. */}}
{{- define "driftd.spread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "driftd.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ $component }}
{{- end }}
{{- end }}

{{- define "driftd.daemonContainer" -}}
name: daemon
image: {{ include "driftd.image" (list . .Values.daemon.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run]
env:
  - {name: DRIFTD_CONFIG, value: /etc/driftd/driftd.yaml}
  - {name: HOME, value: /tmp}
  - {name: HF_HOME, value: /var/lib/driftd/cache}
  # Libraries count the node's cores, not the pod's share.
  - {name: OMP_NUM_THREADS, value: "1"}
  {{- if include "driftd.shared" . }}
  # A member of the group that comes back under its name within the session moves no partition.
  - name: DRIFTD_SOURCE__INSTANCE_ID
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- if .Values.training.job.enabled }}
  - {name: DRIFTD_TRAINER__JOB__FOLDER, value: /var/lib/driftd-training/$(DRIFTD_SOURCE__INSTANCE_ID)}
  {{- end }}
  {{- end }}
  {{- with .Values.daemon.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "driftd.storeKeys" . }}
ports:
  - {name: daemon, containerPort: 8081}
startupProbe:
  httpGet: {path: /health/live, port: daemon{{ with .Values.daemon.tlsSecret }}, scheme: HTTPS{{ end }}}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /health/live, port: daemon{{ with .Values.daemon.tlsSecret }}, scheme: HTTPS{{ end }}}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
# No readiness probe: nobody sends the daemon requests, and in one pod with the server its readiness,
# which asks for a source that answers, must not take the server out.
resources:
  {{- toYaml .Values.daemon.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.security | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/driftd/driftd.yaml, subPath: driftd.yaml, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  - {name: data, mountPath: /var/lib/driftd}
  {{- if eq (include "driftd.store" .) "claim" }}
  - {name: registry, mountPath: /var/lib/driftd/registry}
  {{- else if eq (include "driftd.store" .) "s3" }}
  - {name: cache, mountPath: /var/cache/driftd}
  {{- end }}
  {{- if .Values.training.job.enabled }}
  - {name: config, mountPath: /etc/driftd/training-job.yaml, subPath: training-job.yaml, readOnly: true}
  - {name: training, mountPath: /var/lib/driftd-training}
  - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  {{- end }}
  {{- include "driftd.kafkaMounts" . | nindent 2 }}
  {{- if .Values.kafka.schemaRegistrySecret.name }}
  - {name: schemas, mountPath: /etc/driftd/schemas, readOnly: true}
  {{- end }}
  {{- if .Values.daemon.tokensSecret.name }}
  - {name: daemon-tokens, mountPath: /etc/driftd/daemon-tokens, readOnly: true}
  {{- end }}
  {{- if .Values.daemon.tlsSecret }}
  - {name: daemon-tls, mountPath: /etc/driftd/daemon-tls, readOnly: true}
  {{- end }}
  {{- if .Values.signing.privateSecret.name }}
  - {name: signing, mountPath: /etc/driftd/signing, readOnly: true}
  {{- end }}
  {{- if .Values.signing.publicSecret.name }}
  - {name: trusted, mountPath: /etc/driftd/trusted, readOnly: true}
  {{- end }}
  {{- with .Values.daemon.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* No preStop hook: on SIGTERM the server itself says not ready, serves on for its notice, then drains. */}}
{{- define "driftd.serverContainer" -}}
name: server
image: {{ include "driftd.image" (list . .Values.server.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
env:
  - {name: DRIFTD_CONFIG, value: /etc/driftd/driftd.yaml}
  - {name: HOME, value: /tmp}
  {{- with .Values.server.traces.endpoint }}
  - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
  - {name: OTEL_SERVICE_NAME, value: {{ include "driftd.fullname" $ }}}
  {{- end }}
  {{- with .Values.server.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "driftd.storeKeys" . }}
ports:
  - {name: http, containerPort: 8080}
  {{- if .Values.server.grpc }}
  - {name: grpc, containerPort: 8001}
  {{- end }}
startupProbe:
  httpGet: {path: /v2/health/live, port: http{{ with .Values.server.tlsSecret }}, scheme: HTTPS{{ end }}}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /v2/health/ready, port: http{{ with .Values.server.tlsSecret }}, scheme: HTTPS{{ end }}}
  periodSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /v2/health/live, port: http{{ with .Values.server.tlsSecret }}, scheme: HTTPS{{ end }}}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
resources:
  {{- toYaml .Values.server.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.security | nindent 2 }}
# Of the registry a server writes only what it counts while a challenger sees traffic.
volumeMounts:
  - {name: config, mountPath: /etc/driftd/driftd.yaml, subPath: server.yaml, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if eq (include "driftd.store" .) "s3" }}
  - {name: cache, mountPath: /var/cache/driftd}
  {{- else if eq .Values.mode "together" }}
  - {name: data, mountPath: /var/lib/driftd, readOnly: true}
  - {name: data, mountPath: /var/lib/driftd/registry/traffic, subPath: registry/traffic}
  {{- else }}
  - {name: registry, mountPath: /var/lib/driftd/registry, readOnly: true}
  - {name: registry, mountPath: /var/lib/driftd/registry/traffic, subPath: traffic}
  {{- end }}
  {{- if .Values.server.tokensSecret.name }}
  - {name: tokens, mountPath: /etc/driftd/tokens, readOnly: true}
  {{- end }}
  {{- if .Values.server.predictionLog.saslSecret.name }}
  - {name: log-sasl, mountPath: /etc/driftd/log-sasl, readOnly: true}
  {{- end }}
  {{- if .Values.server.predictionLog.tlsSecret.name }}
  - {name: log-tls, mountPath: /etc/driftd/log-tls, readOnly: true}
  {{- end }}
  {{- if .Values.server.tlsSecret }}
  - {name: server-tls, mountPath: /etc/driftd/server-tls, readOnly: true}
  {{- end }}
  {{- if .Values.signing.publicSecret.name }}
  - {name: trusted, mountPath: /etc/driftd/trusted, readOnly: true}
  {{- end }}
{{- end }}

{{- define "driftd.serverGrace" -}}
{{- add (ceil .Values.server.drain.notice) (ceil .Values.server.drain.drain) 5 -}}
{{- end }}

{{- define "driftd.serverVolumes" -}}
- name: config
  configMap: {name: {{ include "driftd.fullname" . }}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{ include "driftd.storeVolume" . }}
{{ include "driftd.accessVolumes" . }}
{{ include "driftd.trustedVolume" . }}
{{- end }}

{{/* The registry's claim, or room for copies of what lies in an object store. */}}
{{- define "driftd.storeVolume" -}}
{{- if eq (include "driftd.store" .) "claim" -}}
- name: registry
  persistentVolumeClaim: {claimName: {{ include "driftd.registryClaim" . }}}
{{- else if eq (include "driftd.store" .) "s3" -}}
- name: cache
  emptyDir: {sizeLimit: {{ .Values.registry.s3.cache }}}
{{- end -}}
{{- end }}

{{/* Credentials of the object store: as variables, which is where AWS' library looks for them. */}}
{{- define "driftd.storeKeys" -}}
{{- with .Values.registry.s3 }}
{{- if and .url .secret }}
envFrom:
  - secretRef: {name: {{ .secret }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Login and certificates for the brokers, as files. */}}
{{- define "driftd.kafkaVolumes" -}}
{{- with .Values.kafka.saslSecret -}}
{{- if .name -}}
- name: sasl
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items: [{key: {{ .key }}, path: password}]
{{- end -}}
{{- end }}
{{ with .Values.kafka.tlsSecret.name -}}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end -}}
{{- end }}

{{- define "driftd.kafkaMounts" -}}
{{- if .Values.kafka.saslSecret.name -}}
- {name: sasl, mountPath: /etc/driftd/sasl, readOnly: true}
{{- end }}
{{ if .Values.kafka.tlsSecret.name -}}
- {name: tls, mountPath: /etc/driftd/tls, readOnly: true}
{{- end -}}
{{- end }}

{{- define "driftd.accessVolumes" -}}
{{- with .Values.server.tokensSecret -}}
{{- if .name -}}
- name: tokens
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items: [{key: {{ .key }}, path: tokens}]
{{- end -}}
{{- end }}
{{ with .Values.server.tlsSecret -}}
- name: server-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{ with .Values.server.predictionLog.saslSecret -}}
{{- if .name -}}
- name: log-sasl
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items: [{key: {{ .key }}, path: password}]
{{- end -}}
{{- end }}
{{ with .Values.server.predictionLog.tlsSecret.name -}}
- name: log-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end -}}
{{- end }}

{{- define "driftd.trustedVolume" -}}
{{- with .Values.signing.publicSecret -}}
{{- if .name -}}
- name: trusted
  secret:
    secretName: {{ .name }}
    defaultMode: 0444
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end -}}
{{- end -}}
{{- end }}
