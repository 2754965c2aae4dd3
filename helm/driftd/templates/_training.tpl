{{/* What the daemon makes a Job of; it adds name, command, arguments and deadline. */}}
{{- define "driftd.trainingJob" -}}
{{- $job := .Values.training.job -}}
{{- $image := $job.image -}}
{{- if not $image.repository -}}{{- $image = .Values.daemon.image -}}{{- end -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "driftd.fullname" . }}-training
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "driftd.labels" . | nindent 4 }}
    app.kubernetes.io/component: training
spec:
  # A pod that was evicted or killed is replaced once, and goes on after its last whole round.
  backoffLimit: 1
  ttlSecondsAfterFinished: {{ $job.ttlSeconds }}
  template:
    metadata:
      labels:
        {{- include "driftd.selector" . | nindent 8 }}
        app.kubernetes.io/component: training
        {{- with $job.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $job.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "driftd.pod" (list . $job) | nindent 6 }}
      restartPolicy: Never
      containers:
        - name: trainer
          image: {{ include "driftd.image" (list . $image) }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          env:
            - {name: HOME, value: /tmp}
            - {name: TOKENIZERS_PARALLELISM, value: "false"}
            {{- with $job.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          resources:
            {{- toYaml $job.resources | nindent 12 }}
          securityContext:
            {{- toYaml .Values.security | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: training, mountPath: /var/lib/driftd-training}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 4Gi}
        - name: training
          persistentVolumeClaim: {claimName: {{ include "driftd.trainingClaim" . }}}
{{- end }}
